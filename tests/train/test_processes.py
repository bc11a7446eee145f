"""Two processes train what one does, and go on from each other's checkpoints;
where one is killed, the other ends by itself.

On loopback, with two fake devices each. The one process is told to add up
between its four devices as the two do, since another order of summands would
round otherwise.
"""

import shutil
import socket
import time

import pytest

from dollar_jax.train import metrics

STEPS = 12
EARLY = STEPS - 4
"""The oldest checkpoint that a run keeps."""

BY_TIME = {
  "checkpoint.every": 1000,
  "checkpoint.minutes": 1e-9,
  "checkpoint.keep": 100,
}
"""Every step is saved, if the first process' clock says so to all."""

PROCESS = """
import sys
import types
import jax

jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from dollar_jax import cli
from dollar_jax.train import save_times

if sys.argv[-1] == "--process_id=1":  # its clock stands still
  save_times.time = types.SimpleNamespace(monotonic=lambda: 0.0)
sys.exit(cli.main(sys.argv[2:]))
"""


def start(runs, count, command, devices=4):
  """Starts a command in `count` processes that share some devices."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
  return [
    runs.start(PROCESS, str(devices // count), *command, f"--process_id={i}")
    for i in range(count)
  ]


def train(runs, count, command, devices=4):
  """Runs a command in `count` processes that share some devices."""
  for process in start(runs, count, command, devices):
    _, err = process.communicate()
    assert process.returncode == 0, err


@pytest.mark.timeout(900)  # four programs, one after another
def test_two_processes_train_as_one(runs, assert_same_run):
  kind, mesh = "reward", {"mesh__fsdp": 2}
  two, one = runs.fresh(), runs.fresh()
  train(runs, 2, runs.command(kind, two, **mesh))
  whole = runs.whole(kind)
  for mine, other in zip(*map(metrics.read, (two, whole)), strict=True):
    assert mine.keys() == other.keys()
    for name, value in mine.items():
      assert value == pytest.approx(other[name], rel=1e-3, abs=1e-5), name

  shutil.copytree(two, one, dirs_exist_ok=True)
  shutil.rmtree(one / "model")
  for step in (STEPS - 2, STEPS):
    shutil.rmtree(one / "checkpoints" / str(step))
  assert (one / "checkpoints" / str(EARLY)).is_dir()
  train(runs, 1, runs.command(kind, one, **mesh))
  assert_same_run(two, one)


def test_a_process_that_lost_the_other_ends_and_says_so(runs):
  workdir = runs.fresh()
  processes = start(runs, 2, runs.command("teacher", workdir, steps=10**6))
  survivor, victim = processes
  try:
    while not (workdir / "checkpoints" / "4").is_dir():
      assert survivor.poll() is None, survivor.stderr.read()
      time.sleep(0.1)
    victim.kill()
    _, err = survivor.communicate(timeout=100)
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert survivor.returncode == 75, err
  last = err.splitlines()[-1]
  assert last.startswith("dollar train: error: process 0 of 2 lost another")
  assert last.endswith("start the same command again in every process")


@pytest.mark.slow  # five programs one after another
def test_eight_devices_are_eight_whoever_has_them(runs, assert_same_run):
  """Saved by time, and handed on from two processes to one and back."""
  changes = {"mesh.fsdp": 2, "data.batch_size": 8, **BY_TIME}
  two, one = runs.fresh(), runs.fresh()
  train(runs, 2, runs.command("teacher", two, **changes), devices=8)
  train(runs, 1, runs.command("teacher", one, **changes), devices=8)
  assert_same_run(two, one)
  for count, workdir in ((1, two), (2, one)):
    shutil.rmtree(workdir / "model")
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert sorted(saved) == list(range(1, STEPS + 1))
    for step in range(EARLY + 1, STEPS + 1):
      shutil.rmtree(workdir / "checkpoints" / str(step))
    command = runs.command("teacher", workdir, **changes)
    train(runs, count, command, devices=8)
    assert_same_run(two, one)
