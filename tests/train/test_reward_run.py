"""Distillation with a reward: labels, failures of the reward, stopping."""

import numpy as np
import pytest

from dollar_jax.train import metrics

STEPS = 12

REWARDS = """
import numpy as np

calls = 0


def brightness(frames, prompts):
  assert frames.dtype == np.uint8
  assert frames.shape[1:] == (8, 32, 32, 3)
  assert all(prompt.startswith("a ") for prompt in prompts)
  return frames.mean(axis=(1, 2, 3, 4))


def moody(frames, prompts):
  global calls
  calls += 1
  if calls == 1:
    raise RuntimeError("no service")
  if calls == 2:
    return np.zeros((len(frames), 1))
  values = brightness(frames, prompts)
  if calls == 3:
    values[1] = np.nan
  return values


def raises(frames, prompts):
  raise RuntimeError("no service")


def shapeless(frames, prompts):
  return 1.0


def nan(frames, prompts):
  return [float("nan")] * len(frames)
"""


@pytest.fixture
def rewards(reward_module):
  return reward_module(REWARDS)


ALONE = {
  "distill__vsd_weight": 0.0,
  "checkpoint__every": STEPS,
  "guard__every": 0,
}
"""The reward alone: nothing else need be compiled, or calls it."""


def test_reward_run_logs_true_and_latent_reward(runs):
  rows = metrics.read(runs.whole("reward"))
  refreshed = [row for row in rows if "true_reward" in row]
  assert [row["step"] for row in refreshed] == [3, 6, 9, 12]
  for row in refreshed:
    assert row["label_failures"] == 0
    assert row["label_age"] == 0
    assert np.isfinite(row["true_reward"])
    assert np.isfinite(row["lrm_reward"])
    assert np.isfinite(row["lrm_loss"])
  assert all("latent_reward" in row for row in rows)


def test_run_goes_on_without_the_labels_that_failed(
  runs, dollar, rewards, read_state
):
  workdir = runs.fresh()
  name = f"{rewards}:moody"
  command = runs.command("reward", workdir, reward__name=name, **ALONE)
  code, _, err = dollar(command)
  assert (code, err) == (0, "")
  rows = [row for row in metrics.read(workdir) if "label_failures" in row]
  # both calls of the warm-up gave nothing, the third lacked one of four
  assert [row["label_failures"] for row in rows] == [9, 9, 9, 9]
  state = read_state(workdir, STEPS)
  assert state["['labels']['count']"] == 3 + 3 * 4
  assert np.isfinite(state["['labels']['values']"]).all()
  # the scale of the reward comes from the first labels there are
  assert state["['networks']['reward']['statistics']['count']"] == 3
  assert state["['networks']['reward']['statistics']['mean']"] > 0


@pytest.mark.parametrize(
  ("reward", "reason"),
  [
    ("raises", "RuntimeError: no service"),
    ("shapeless", "returned shape () instead of (4,)"),
    ("nan", "returned 4 of 4 values not finite"),
  ],
)
def test_reward_that_keeps_failing_stops_the_run(
  runs, refusal, rewards, reward, reason
):
  name = f"{rewards}:{reward}"
  changes = {"reward__name": name, "reward__max_failures": 2} | ALONE
  sentence = refusal(runs.command("reward", runs.fresh(), **changes))
  assert sentence.startswith(f"reward '{name}' failed in 2 calls in a row")
  assert reason in sentence


def test_labels_in_the_background_train_as_well(runs, dollar, rewards):
  workdir = runs.fresh()
  changes = {
    "reward__labelling": "background",
    "reward__max_failures": 3,
  } | ALONE
  name = f"{rewards}:brightness"
  command = runs.command("reward", workdir, reward__name=name, **changes)
  assert dollar(command)[0] == 0
  rows = [row for row in metrics.read(workdir) if "label_failures" in row]
  assert all(row["label_failures"] == 0 for row in rows)
  assert any("true_reward" in row for row in rows)


def test_a_policy_gradient_needs_no_latent_model(
  runs, dollar, rewards, read_state
):
  workdir = runs.fresh()
  changes = ALONE | {
    "distill__reward_weight": 0.0,
    "distill__ddpo_weight": 1.0,
    "reward__name": f"{rewards}:brightness",
  }
  assert dollar(runs.command("reward", workdir, **changes))[0] == 0
  rows = metrics.read(workdir)
  assert len(rows) == STEPS
  for row in rows:
    assert np.isfinite(row["true_reward"])
    assert row["label_failures"] == 0
  state = read_state(workdir, STEPS)
  assert not any("reward" in name for name in state)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (
      {"distill__num_steps": 1},
      "config.distill.ddpo_weight is 1.0; it must be",
    ),
    ({"distill__fresh_noise": 0.0}, "no noise between its steps to learn from"),
  ],
)
def test_a_policy_gradient_needs_noise(runs, refusal, changes, sentence):
  changes = changes | {"distill__ddpo_weight": 1.0}
  assert sentence in refusal(runs.command("reward", runs.fresh(), **changes))


@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("jpeg_compresibility", "did you mean 'jpeg_compressibility'?"),
    ("no_such_module:f", "module 'no_such_module' of reward"),
    ("MODULE:brightnes", "did you mean 'brightness'?"),
  ],
)
def test_unknown_reward_is_one_sentence(runs, refusal, rewards, name, sentence):
  name = name.replace("MODULE", rewards)
  command = runs.command("reward", runs.fresh(), reward__name=name)
  assert sentence in refusal(command)
