"""Times this checkout beside another revision of it, turn by turn.

  .venv/bin/python -m benchmarks.against_release 063fbba
  .venv/bin/python -m benchmarks.against_release v0.1.0 --tasks=demo --rounds=1

The revision is checked out into a temporary folder and runs in the environment
of this one. Both sides take turns; what is printed are medians and their ratio,
new over old. Tasks: start (help, a usage error and the first line of a
training), steps (tracing, compiling and running the digits' student and score
step), resume (from the command to the first update of a run that goes on, with
all programs compiled before), decode (the video autoencoders), demo and suite
(README's two commands, from clones without environment or cache; long).
Needs an idle machine: above a load of 0.5 at the start it says so.
"""

import argparse
import json
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Task = Callable[[Path, Path], dict[str, float]]
"""`f(checkout, folder of its own) -> seconds by name`."""

ROOT = Path(__file__).resolve().parent.parent
STUDENT = "configs/digits/student.py"


def main() -> None:
  """Runs the tasks and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("revision", help="of this repository, such as 063fbba")
  parser.add_argument("--tasks", default="start,steps,resume")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  if (load := os.getloadavg()[0]) > 0.5:
    print(f"load {load:.1f}: the machine is not idle, trust no time below")
  with tempfile.TemporaryDirectory() as scratch:
    old = Path(scratch) / "old"
    _git("clone", "--quiet", "--shared", str(ROOT), str(old))
    _git("-C", str(old), "checkout", "--quiet", "--detach", args.revision)
    sides = {"old": old, "new": ROOT}
    for task in args.tasks.split(","):
      found: dict[str, dict[str, list[float]]] = {}
      for _ in range(args.rounds):
        for side, checkout in sides.items():
          folder = Path(scratch) / f"{task}-{side}"
          for name, seconds in TASKS[task](checkout, folder).items():
            rows = found.setdefault(name, {"old": [], "new": []})
            rows[side].append(seconds)
      _print(found)


def _print(found: dict[str, dict[str, list[float]]]) -> None:
  for name, sides in found.items():
    old, new = (statistics.median(sides[side]) for side in ("old", "new"))
    spread = "-".join(f"{min(v):.3g}..{max(v):.3g} " for v in sides.values())
    print(
      f"{name:52} {old:9.3f} {new:9.3f}  ratio {new / old:.2f}  {spread}",
      flush=True,
    )


def start(checkout: Path, folder: Path) -> dict[str, float]:
  """Seconds of what answers at once, and to the first line of a training."""
  train = "train", f"--config={STUDENT}", f"--workdir={folder}/run"
  seconds = {}
  for name, args in {
    "dollar sample --help, s": ("sample", "--help"),
    "dollar sample, a wrong flag, s": ("sample", "--out=x", "--stepz=1"),
    "dollar train, a wrong entry, s": (*train, "--config.stepz=1"),
  }.items():
    began = time.perf_counter()
    subprocess.run(
      _command(*args),
      env=_environment(checkout, folder),
      cwd=checkout,
      capture_output=True,
      check=False,
    )
    seconds[name] = time.perf_counter() - began
  shutil.rmtree(folder / "run", ignore_errors=True)
  seconds["dollar train to its first line, s"] = _seconds_to_first_line(
    _command(*train), checkout, folder
  )
  return seconds


def resume(checkout: Path, folder: Path) -> dict[str, float]:
  """Seconds from the command to the first update of a run that goes on.

  The first call makes a run of one update and a copy that goes on, so that the
  cache holds all programs.
  """
  first, again = folder / "first", folder / "again"
  if not first.exists():
    _train(checkout, folder, first, 1)
    shutil.copytree(first, again)
    _train(checkout, folder, again, 2)
  shutil.rmtree(again)
  shutil.copytree(first, again)
  return {"resume to its first update, s": _train(checkout, folder, again, 2)}


def _train(
  checkout: Path,
  folder: Path,
  workdir: Path,
  steps: int,
) -> float:
  """Trains the digits' student to `steps`; seconds to that update's metrics."""
  command = _command(
    "train",
    f"--config={STUDENT}",
    f"--workdir={workdir}",
    f"--config.steps={steps}",
    "--config.log_every=1",
    "--config.distill.cd_warmup=0",
    "--config.distill.score_warmup=0",
    "--config.optimizer.warmup_steps=0",
    "--config.score_optimizer.warmup_steps=0",
    "--config.optimizer.schedule=constant",
  )
  environment = _environment(checkout, folder)
  log, wanted = workdir / "metrics.jsonl", f'"step": {steps}'
  began = time.perf_counter()
  with subprocess.Popen(
    command, env=environment, cwd=checkout, stdout=subprocess.DEVNULL
  ) as process:
    while not (log.exists() and wanted in log.read_text()):
      if process.poll() is not None:
        raise RuntimeError(f"{command} ended with {process.returncode}")
      time.sleep(0.01)
    return time.perf_counter() - began


def _probe(name: str) -> Task:
  """A task that runs a file of `probes`, which prints seconds as JSON."""

  def run(checkout: Path, folder: Path) -> dict[str, float]:
    done = subprocess.run(
      [sys.executable, str(ROOT / "benchmarks" / "probes" / f"{name}.py")],
      env=_environment(checkout, folder),
      cwd=checkout,
      check=True,
      stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])

  return run


def _script(name: str) -> Task:
  """A task that runs a script of `launch` in a clone, with nothing prepared."""

  def run(checkout: Path, folder: Path) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    _git("clone", "--quiet", "--shared", str(checkout), str(folder))
    began = time.perf_counter()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
      subprocess.run(
        ["bash", str(folder / "launch" / name)],
        env=os.environ | {"HOME": str(folder)},
        check=True,
        stdout=log,
        stderr=log,
      )
    return {f"launch/{name}, s": time.perf_counter() - began}

  return run


def _command(*args: str) -> list[str]:
  return [sys.executable, "-m", "dollar_jax", *args]


def _environment(checkout: Path, folder: Path) -> dict[str, str]:
  """As a user has it, with a home and a cache of this task and side alone."""
  folder.mkdir(parents=True, exist_ok=True)
  return os.environ | {
    "HOME": str(folder),
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    "PYTHONPATH": str(checkout),
  }


def _seconds_to_first_line(
  command: list[str], checkout: Path, folder: Path
) -> float:
  """Runs a command on a terminal until it says something."""
  began = time.perf_counter()
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    command,
    env=_environment(checkout, folder),
    cwd=checkout,
    stdout=theirs,
    stderr=theirs,
  )
  os.close(theirs)
  os.read(ours, 1)
  seconds = time.perf_counter() - began
  process.kill()
  process.wait()
  os.close(ours)
  return seconds


def _git(*args: str) -> None:
  subprocess.run(["git", *args], check=True)


TASKS = {
  "start": start,
  "steps": _probe("steps"),
  "resume": resume,
  "decode": _probe("decode"),
  "demo": _script("demo.sh"),
  "suite": _script("test.sh"),
}

if __name__ == "__main__":
  main()
