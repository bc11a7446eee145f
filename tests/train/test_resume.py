"""A run that is killed and started again equals the unbroken one."""

import json
import os
import random
import signal
import time

import pytest

from dollar_jax import cli
from dollar_jax.interop import diffusers, transfer

STEPS = 12

DOLLAR = """
import sys
from dollar_jax import cli

sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_run_says_what_it_ran_on(runs):
  made = json.loads((runs.whole("teacher") / "machine.json").read_text())
  assert 0 < made["seconds_per_step"] < 60
  assert made["devices"] == 1


@pytest.mark.parametrize("kind", ["teacher", "distill", "reward"])
def test_killed_run_goes_on_to_the_same_bits(
  kind, runs, dollar, assert_same_run, read_state
):
  whole = runs.whole(kind)
  seed = random.SystemRandom().randrange(2**16)
  # from step 5 on, the checkpoint of step 2 is whole
  step = random.Random(seed).randrange(5, STEPS - 2)
  print(f"seed {seed}: killed after step {step}")
  workdir = runs.fresh()
  command = runs.command(kind, workdir)
  process = runs.start(DOLLAR, *command)
  _wait_for_row(process, workdir / "metrics.jsonl", step)
  os.kill(process.pid, signal.SIGKILL)
  _, err = process.communicate()
  assert process.returncode == -signal.SIGKILL, err
  assert err == "", "a run without a terminal says nothing"
  assert not (workdir / "model").exists()
  saved = [int(p.name) for p in workdir.glob("checkpoints/*[0-9]")]
  assert saved
  assert max(saved) < STEPS

  code, _, err = dollar(command)
  assert (code, err) == (0, "")
  assert_same_run(whole, workdir)
  assert sorted(p.name for p in workdir.glob("checkpoints/*")) == sorted(
    str(n) for n in (STEPS - 4, STEPS - 2, STEPS)
  ), "something half written is left"


def test_a_run_that_is_asked_to_stop_saves_first(runs, dollar, assert_same_run):
  workdir = runs.fresh()
  command = runs.command("teacher", workdir, checkpoint__every=1)
  process = runs.start_command(command)
  _wait_for_row(process, workdir / "metrics.jsonl", 3)
  process.terminate()
  _, err = process.communicate()
  assert process.returncode == 143, err
  saved = [int(p.name) for p in workdir.glob("checkpoints/*[0-9]")]
  last = max(saved)
  assert 3 <= last < STEPS
  assert err == (
    f"dollar train: error: stopped by SIGTERM after step {last}, which is "
    "saved; run the same command again to go on\n"
  )
  assert dollar(command)[0] == 0
  assert_same_run(runs.whole("teacher"), workdir)


def test_every_part_of_a_run_is_in_its_checkpoint(runs, read_state):
  names = "\n".join(read_state(runs.whole("reward"), STEPS))
  for part in (
    "['networks']['student']['params']",
    "['networks']['student']['ema']",
    "['networks']['student']['opt_state']",
    "['networks']['fake_score']['params']",
    "['networks']['fake_score']['opt_state']",
    "['networks']['reward']['network']['params']",
    "['networks']['reward']['statistics']['mean']",
    "['labels']['values']",
    "['labels']['counts']",
  ):
    assert part in names
  teacher = "\n".join(read_state(runs.whole("teacher"), STEPS))
  assert "['ema']" in teacher


@pytest.mark.parametrize("kind", ["teacher", "lora"])
def test_an_unfinished_run_converts_to_its_newest_checkpoint(runs, kind):
  finished, out = runs.whole(kind) / "model", runs.fresh() / "model"
  source = runs.copy(kind)
  line = ["convert", f"--source={source}", f"--out={out}", "--verify"]
  assert cli.main(line) == 0
  assert transfer.differences(finished, out) == ["recipe.json"]
  wanted = diffusers.load_recipe(finished)
  del wanted["config"]  # which the run says
  assert diffusers.load_recipe(out) == wanted


def _wait_for_row(process, file, count):
  deadline = time.monotonic() + 250
  while time.monotonic() < deadline and process.poll() is None:
    if file.exists() and file.read_text().count("\n") >= count:
      return
    time.sleep(0.002)
  process.kill()
  raise AssertionError(process.communicate()[1])
