"""What machines do to a run: kill it at any moment, forbid it to write."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

STEPS = 12

TELLING = """
import sys
from dollar_jax import cli
from dollar_jax.train import loop

restore = loop.Checkpointer.restore


def tell(self, *args):
  found = restore(self, *args)
  print(found[0] if found else 0, flush=True)
  return found


loop.Checkpointer.restore = tell
sys.exit(cli.main(sys.argv[1:]))
"""
"""A run that says which step it goes on from."""


class Victim:
  """A run that is killed again and again.

  Attributes:
    workdir: its folder.
    saving: kills while a save was under way.
  """

  def __init__(self, runs, seed, steps):
    self.workdir, self.saving = runs.fresh(), 0
    self._runs, self._rng, self._steps = runs, random.Random(seed), steps
    self.command = runs.command("teacher", self.workdir, steps=steps)
    self._start = 8.0  # seconds that it takes, about

  def kill(self, moment):
    """Starts the run, kills it, and checks what it went on from.

    Args:
      moment: "starting", "training" or "saving".
    """
    before, began = self._whole(), time.monotonic()
    process = self._runs.start(TELLING, *self.command)
    out = ""
    if moment == "starting":
      time.sleep(self._rng.uniform(0, 1.2) * self._start)
    else:
      out = process.stdout.readline()  # now what the last one left is gone
      self._start = time.monotonic() - began
    if moment == "training":
      more = self._rng.randrange(1, min(8, self._steps - before))
      self._wait(process, lambda: self._rows() >= before + more)
      time.sleep(self._rng.uniform(0, 0.1))
    elif moment == "saving":
      for _ in range(self._rng.randrange(1, 4) if self._steps > STEPS else 1):
        seen = self._half()
        self._wait(process, lambda seen=seen: self._half() - seen)
      time.sleep(self._rng.uniform(0, 0.02))
    process.kill()
    rest, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert err == "", "a run that goes on has nothing to say"
    said = [f"{before}\n"] + [""] * (moment == "starting")
    assert out + rest in said, "it did not go on from the last whole one"
    self.saving += bool(self._half())
    assert self._whole() >= before, "a whole checkpoint is gone"
    assert self._rows() >= self._whole(), "a saved step has no metrics"
    took = time.monotonic() - began
    where = f"{self._rows()} rows, {self._whole()} saved"
    print(f"{moment} {took:.1f} s, {where}, {self.saving} in a save")

  def _whole(self):
    folder = self.workdir / "checkpoints"
    return max((int(p.name) for p in folder.glob("*[0-9]")), default=0)

  def _half(self):
    folder = self.workdir / "checkpoints"
    return {p.name for p in folder.glob("*.orbax-checkpoint-tmp*")}

  def _rows(self):
    file = self.workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0

  def _wait(self, process, condition):
    deadline = time.monotonic() + 250
    while not condition():
      if process.poll() is not None or time.monotonic() > deadline:
        process.kill()
        raise AssertionError(process.communicate()[1])
      time.sleep(0.001)


def test_kills_in_the_middle_of_a_save_lose_nothing(
  runs, dollar, assert_same_run
):
  seed = random.SystemRandom().randrange(2**16)
  print(f"seed {seed}")
  victim = Victim(runs, seed, STEPS)
  for _ in range(2):
    victim.kill("saving")
  code, _, err = dollar(victim.command)
  assert (code, err) == (0, "")
  assert_same_run(runs.whole("teacher"), victim.workdir)


READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 77
exec "$@"
"""


def test_a_folder_that_cannot_be_written_is_one_sentence(runs):
  workdir = runs.copy("teacher")
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  before = sorted(workdir.rglob("*"))
  command = [
    sys.executable,
    "-m",
    "dollar_jax",
    *runs.command("teacher", workdir),
  ]
  done = subprocess.run(
    ["unshare", "--mount", "sh", "-c", READ_ONLY, str(workdir), *command],
    capture_output=True,
    text=True,
  )
  if done.returncode == 77 or done.stderr.startswith("unshare:"):
    pytest.skip(f"no folder can be mounted read-only here: {done.stderr}")
  assert done.returncode == 1
  assert done.stderr == (
    f"dollar train: error: workdir {workdir} cannot be written (Read-only file "
    "system); make it writable, or use another\n"
  )
  assert sorted(workdir.rglob("*")) == before


@pytest.mark.slow  # fifty starts of a program
@pytest.mark.timeout(3600)
def test_fifty_kills_lose_nothing(runs, dollar, assert_same_run):
  steps, whole = 400, runs.fresh()
  assert dollar(runs.command("teacher", whole, steps=steps))[0] == 0
  victim = Victim(runs, 0, steps)
  moments = ["starting"] * 10 + ["training"] * 12 + ["saving"] * 28
  random.Random(0).shuffle(moments)
  for moment in moments:
    victim.kill(moment)
  assert victim.saving >= 20
  code, _, err = dollar(victim.command)
  assert (code, err) == (0, "")
  assert_same_run(whole, victim.workdir, steps)
