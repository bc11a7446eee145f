"""Consistency alone comes first; tests/train/test_resume.py stops within it."""

import json

WARMUP, SCORE_WARMUP, SCORE_STEPS = 9, 3, 2  # as in conftest.py


def test_vsd_and_its_critic_wait_for_consistency(runs, read_state):
  workdir = runs.whole("distill")
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert len(lines) > WARMUP
  for i, row in enumerate(map(json.loads, lines)):
    assert "consistency" in row
    assert ("vsd_force" in row) == (i >= WARMUP), row
    assert ("score_loss" in row) == (i >= WARMUP), row
  assert _score_updates(read_state(workdir, WARMUP - 1)) == {0}
  first = SCORE_WARMUP + SCORE_STEPS
  assert _score_updates(read_state(workdir, WARMUP + 1)) == {first}


def _score_updates(state):
  name = "['networks']['fake_score']['opt_state']"
  counts = [v for k, v in state.items() if k.startswith(name) and "count" in k]
  assert counts
  return {int(count) for count in counts}
