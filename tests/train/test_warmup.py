"""Consistency alone comes first: what it skips, and a stop in the middle."""

import json
import shutil

WARMUP, SCORE_WARMUP, SCORE_STEPS, KEPT = 5, 3, 2, 2


def test_consistency_comes_first_and_a_stop_within_it_leaves_no_trace(
  runs, dollar, read_state, assert_same_run
):
  whole = runs.fresh()
  command = runs.command(
    "distill",
    whole,
    distill__cd_warmup=WARMUP,
    distill__score_warmup=SCORE_WARMUP,
    distill__score_steps=SCORE_STEPS,
    checkpoint__keep=20,
  )
  assert dollar(command)[::2] == (0, "")

  lines = (whole / "metrics.jsonl").read_text().splitlines()
  for i, row in enumerate(map(json.loads, lines)):
    assert "consistency" in row
    assert ("vsd_force" in row) == (i >= WARMUP), row
    assert ("score_loss" in row) == (i >= WARMUP), row
  assert _score_updates(read_state(whole, WARMUP - 1)) == {0}
  first = SCORE_WARMUP + SCORE_STEPS
  assert _score_updates(read_state(whole, WARMUP + 1)) == {first}

  again = runs.fresh()
  shutil.copytree(whole, again, dirs_exist_ok=True)
  shutil.rmtree(again / "model")
  for saved in again.glob("checkpoints/*[0-9]"):
    if int(saved.name) > KEPT:
      shutil.rmtree(saved)
  command = [arg.replace(str(whole), str(again)) for arg in command]
  code, _, err = dollar(command)
  assert (code, err) == (0, "")
  assert_same_run(whole, again)


def _score_updates(state):
  name = "['networks']['fake_score']['opt_state']"
  counts = [v for k, v in state.items() if k.startswith(name) and "count" in k]
  assert counts
  return {int(count) for count in counts}
