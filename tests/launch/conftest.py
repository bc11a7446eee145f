"""A cloud of one machine: gcloud whose workers are folders of this one."""

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

FILES = ["launch/tpu_pod.sh", "launch/worker.sh", "requirements/tpu.txt"]

# Notes its arguments, keeps the state of one request in a file, and runs what
# is sent to a worker in a folder that is that worker's home.
GCLOUD = """
import json, os, pathlib, shutil, signal, subprocess, sys

cloud = pathlib.Path(os.environ["CLOUD"])
arguments = sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as file:
  file.write(json.dumps(["gcloud", *arguments]) + "\\n")
assert arguments[:2] == ["compute", "tpus"]
group, verb, name = arguments[2:5]
flags = dict(a.partition("=")[::2] for a in arguments[5:] if a.startswith("--"))
states = cloud / "states"

def homes(node):
  which = flags["--worker"]
  numbers = range(2) if which == "all" else [int(which)]
  for number in numbers:
    home = cloud / "workers" / node / str(number)
    home.mkdir(parents=True, exist_ok=True)
    yield home

if verb == "create":
  if not states.exists():
    states.write_text("ACTIVE\\n")
elif verb == "describe":
  if not states.exists():
    sys.exit("ERROR: NOT_FOUND: no such resource")
  first, *rest = states.read_text().splitlines()
  print(first)
  if rest:
    states.write_text("\\n".join(rest) + "\\n")
elif verb == "delete":
  for pid in cloud.glob("workers/*/*/dollar/pid"):
    if not (pid.parent / "exit_code").exists():
      os.kill(int(pid.read_text()), signal.SIGKILL)
  shutil.rmtree(cloud / "workers", ignore_errors=True)
  states.unlink()
elif verb == "scp":
  node, _, target = arguments[5].partition(":")
  for home in homes(node):
    shutil.copy(name, home / target)
elif verb == "ssh":
  running = []
  for home in homes(name):
    path = f"{cloud / 'worker_bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path}
    command = ["bash", "-c", flags["--command"]]
    running.append(subprocess.Popen(command, cwd=home, env=environment))
  sys.exit(max(child.wait() for child in running))
else:
  sys.exit(f"no {verb}")
"""

# A worker's python3: `-m uv venv FOLDER` makes an environment with `dollar`.
PYTHON3 = """
#!/usr/bin/env bash
echo "$@" >>"$CLOUD/python3.txt"
if [[ $3 == venv ]]; then
  mkdir -p "${!#}/bin"
  cp "$CLOUD/dollar" "${!#}/bin/dollar"
  ln -s /bin/true "${!#}/bin/python"
fi
"""

# A training: notes its arguments and ends as the next of the plans says, or by
# SIGTERM.
DOLLAR = """
import json, os, pathlib, signal, sys, time

cloud = pathlib.Path(os.environ["CLOUD"])
home = pathlib.Path(os.environ["HOME"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open(home / "arguments.jsonl", "a") as file:
  file.write(json.dumps(sys.argv[1:]) + "\\n")
print("training in", os.getcwd(), flush=True)
plans = cloud / "plans.json"
if home.name == "0" and plans.exists():
  plan, *rest = json.loads(plans.read_text())
  plans.write_text(json.dumps(rest))
  if "state" in plan:
    (cloud / "states").write_text(plan["state"] + "\\n")
  if "exit" in plan:
    sys.exit(plan["exit"])
time.sleep(60)
"""


class Cloud:
  """A cloud that stands in for Google's; `folder` holds all of it."""

  def __init__(self, folder, checkout):
    self.folder = folder
    self.checkout = checkout
    self._write("bin/gcloud", f"#!{sys.executable} -SE\n{GCLOUD}")
    self._write("worker_bin/python3", PYTHON3)
    self._write("dollar", f"#!{sys.executable} -SE\n{DOLLAR}")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    self.environment = {**os.environ, "CLOUD": str(folder), "PATH": path}

  def _write(self, name, text):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

  def pod(self, *arguments, code=0):
    """Runs launch/tpu_pod.sh; returns what it printed."""
    done = subprocess.run(
      ["bash", str(self.checkout / "launch/tpu_pod.sh"), *arguments],
      capture_output=True,
      text=True,
      env=self.environment,
      cwd=self.folder,
      timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done

  def calls(self):
    """The commands that gcloud got, in order."""
    file = self.folder / "calls.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]

  def verbs(self):
    """What gcloud was told to do, looks left out."""
    verbs = [call[4] for call in self.calls()]
    return [verb for verb in verbs if verb != "describe"]

  def states(self, *names):
    (self.folder / "states").write_text("\n".join(names) + "\n")

  def plans(self, *plans):
    (self.folder / "plans.json").write_text(json.dumps(plans))

  def home(self, node, worker=0):
    return self.folder / "workers" / node / str(worker)

  def trainings(self, node, worker=0, count=1):
    """The arguments of each training of a worker, once there are `count`."""
    file = self.home(node, worker) / "arguments.jsonl"
    deadline = time.monotonic() + 10
    while True:
      lines = file.read_text().splitlines() if file.exists() else []
      if len(lines) >= count:
        return [json.loads(line) for line in lines]
      assert time.monotonic() < deadline, f"no training on {node}, {worker}"
      time.sleep(0.02)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
  """What `setup` copies: a commit of the scripts and little else."""
  folder = tmp_path_factory.mktemp("checkout")
  for name in FILES:
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, folder / name)
  git = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
  commit = ["commit", "--quiet", "--message=all"]
  for command in (["init", "--quiet"], ["add", "."], commit):
    subprocess.run([*git, *command], cwd=folder, check=True)
  return folder


@pytest.fixture
def cloud(tmp_path, checkout):
  made = Cloud(tmp_path, checkout)
  yield made
  for pid in tmp_path.glob("workers/*/*/dollar/pid"):
    subprocess.run(["kill", pid.read_text().strip()], capture_output=True)
