"""The guard ends a run that pays for its reward, and keeps the best student."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dollar_jax.evaluation.intervals import Estimate
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.parallel import rules
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.train import metrics
from dollar_jax.train.config import (
  DistillConfig,
  GuardConfig,
  RewardConfig,
  TrainConfig,
)
from dollar_jax.train.guard import Guard
from dollar_jax.train.guard_judge import NEVER
from dollar_jax.train.shared_labels import Decoder

WEIGHTS = "model/transformer/diffusion_pytorch_model.safetensors"


class _Student:
  def videos(self, params, batch, key):
    return batch["latents"]


@pytest.fixture
def guard():
  """Makes a guard of `2*sharpness - jpeg_size` that watches two more."""

  def make(**settings):
    settings |= {"watch": ("temporal_flickering", "-motion")}
    settings |= {"samples": 64, "every": 10}
    config = TrainConfig(
      task="distill",
      distill=DistillConfig(reward_weight=1.0),
      reward=RewardConfig(name="2*sharpness - jpeg_size"),
      guard=GuardConfig(**settings),
    )
    mesh = make_mesh()
    codec = LinearVAE(
      np.zeros((192, 4), np.float32),
      np.zeros(192, np.float32),
      np.ones(4, np.float32),
      (1, 8, 8),
    )
    made = Guard(config, _Student(), Decoder(codec, mesh), mesh)
    params = {"w": rules.put(np.zeros(2, np.float32), rules.replicated(mesh))}
    return made, made.init(params)

  return make


def _values(sharpness=0.0, jpeg=0.0, flicker=0.0, motion=0.0):
  """Values [64, 4] whose means are given, in deviations."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal((64, 4))
  values = (values - values.mean(0)) / values.std(0)
  means = np.array([sharpness, jpeg, flicker, motion])
  scale = np.array([1.0, 100.0, 1e-3, 5.0])
  return ((values + means) * scale + 7).astype(np.float32)


def _see(guard, state, *looks):
  """The states after some looks, ten steps apart."""
  states = []
  for i, values in enumerate(looks):
    state, _ = guard.judge(state, values, 10 * i)
    states.append(state)
  return states


def test_the_best_look_is_that_of_the_weighted_sum(guard):
  made, state = guard()
  looks = [
    _values(),
    _values(sharpness=1),  # (2 * 1) / 3
    _values(sharpness=1, jpeg=-1),  # (2 + 1) / 3
    _values(sharpness=1.2),
  ]
  states = _see(made, state, *looks)
  assert [int(s.best_step) for s in states] == [0, 10, 20, 20]
  sums = [float(s.best.mean()) for s in states]
  np.testing.assert_allclose(sums, [0, 2 / 3, 1, 1], atol=1e-5)
  assert all(s.ended == NEVER for s in states)


@pytest.mark.parametrize(
  ("look", "what"),
  [
    ({"flicker": -1.5}, "temporal_flickering was 1.5 deviations worse than"),
    ({"motion": 2}, "motion was 2 deviations worse than at the start"),
    ({"sharpness": -1}, "the true reward was 0.67 deviations below its best"),
  ],
)
def test_a_fall_beyond_its_bound_ends_the_run(guard, look, what):
  made, state = guard()
  states = _see(made, state, _values(), _values(**look))
  assert int(states[1].ended) == 10
  said = made.judge.told(states[1])
  assert what in said
  assert said.startswith("the guard stopped the run at step 10: ")
  assert said.endswith("the student of step 0 is kept")


@pytest.mark.parametrize(
  "look",
  [
    {"flicker": 1.5, "motion": -2},  # both for the better
    {"flicker": -0.9},  # within its bound of one deviation
    {"sharpness": 0.5, "jpeg": 0.9},  # one for the other
  ],
)
def test_what_is_within_its_bounds_goes_on(guard, look):
  made, state = guard()
  states = _see(made, state, _values(), _values(**look))
  assert states[1].ended == NEVER
  assert made.judge.told(states[1]) is None


def test_a_fall_that_may_be_chance_does_not_count(guard):
  made, state = guard(watch_fall=0.1, reward_fall=0.1)
  noise = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
  scale = np.array([1, 100, 1e-3, 5], np.float32)
  # clips that have not much to do with each other, a little worse
  looks = [7 + noise * scale, 7 + (noise[::-1] - 0.2) * scale]
  assert _see(made, state, *looks)[1].ended == NEVER
  # the same clips, each a little worse
  looks = [7 + noise * scale, 7 + (noise - 0.2) * scale]
  assert _see(made, state, *looks)[1].ended == 10


def _sets(frechet, diversity, spread=0.1):
  return {
    "frechet": Estimate(frechet, frechet - spread, frechet + spread),
    "diversity": Estimate(diversity, diversity - spread, diversity + spread),
  }


@pytest.mark.parametrize(
  ("sets", "what"),
  [
    (
      _sets(3.0, 5.0),
      "the Fréchet distance was 200% above the start's",
    ),
    (
      _sets(1.0, 3.0),
      "the diversity was 40% below the start's",
    ),
    (_sets(1.9, 4.5), None),  # both within their bounds
    (_sets(0.2, 9.0), None),  # both for the better
    (_sets(3.0, 3.0, spread=2.5), None),  # both may be chance
  ],
)
def test_what_all_clips_are_together_is_watched(guard, sets, what):
  made, state = guard(features="digits")
  state, seen = made.judge(state, _values(), 0, _sets(1.0, 5.0))
  assert (seen["guard/frechet"], seen["guard/diversity"]) == (1.0, 5.0)
  limits = seen["guard_limit/frechet"], seen["guard_limit/diversity"]
  assert limits == (2.0, 4.0)
  state, _ = made.judge(state, _values(), 10, sets)
  said = made.judge.told(state)
  assert (said is None) == (what is None)
  if what:
    assert said.startswith(f"the guard stopped the run at step 10: {what} (")
    assert said.endswith("the student of step 0 is kept")


def test_limits_are_where_the_run_ends(guard):
  made, state = guard()
  state, seen = made.judge(state, _values(), 0)
  for name, change in (
    ("temporal_flickering", {"flicker": -1}),
    ("motion", {"motion": 1}),
  ):
    limit = seen[f"guard_limit/{name}"]
    for beyond, ended in ((0.99, NEVER), (1.01, 10)):
      worse = {key: beyond * value for key, value in change.items()}
      values = _values(**worse)
      column = made._mixture.names.index(name)
      now, _ = made.judge(state, values, 10)
      assert now.ended == ended
      side = np.sign(made._mixture.weights[column])
      assert (side * (values[:, column].mean() - limit) < 0) == (ended == 10)
  assert seen["guard_limit/sum"] == pytest.approx(-0.5, abs=1e-6)


def test_clips_without_a_value_are_left_out(guard):
  made, state = guard()
  start, later = _values(), _values(sharpness=1, flicker=0.5)
  start[::3, 0], later[1::3, 2] = np.nan, np.nan
  states = _see(made, state, start, later)
  assert states[1].ended == NEVER
  assert states[1].best_step == 10


def test_patience_waits_for_looks_in_a_row(guard):
  made, state = guard(patience=2)
  bad, good = _values(flicker=-3), _values()
  states = _see(made, state, good, bad, good, bad, bad)
  assert [int(s.strikes) for s in states] == [0, 1, 0, 1, 2]
  assert [int(s.ended) for s in states] == [NEVER] * 4 + [40]


def test_a_student_that_pays_is_not_the_best(guard):
  made, state = guard(patience=9)
  states = _see(made, state, _values(), _values(sharpness=5, flicker=-3))
  assert int(states[1].best_step) == 0


@pytest.mark.parametrize(
  ("watch", "sentence"),
  [
    (("sharpness",), "has 'sharpness', which is optimised or comes twice"),
    (("motion", "motion"), "has 'motion', which is optimised or comes twice"),
    (("2*motion",), "has '2*motion'; it takes single rewards"),
    (("motion + brisque",), "takes single rewards, such as 'sharpness'"),
    (("motoin",), "did you mean 'motion'?"),
  ],
)
def test_what_cannot_be_watched_is_one_sentence(guard, watch, sentence):
  config = TrainConfig(
    task="distill",
    distill=DistillConfig(reward_weight=1.0),
    reward=RewardConfig(name="sharpness"),
    guard=GuardConfig(every=10, watch=watch),
  )
  with pytest.raises(ValueError) as refused:
    Guard(config, _Student(), None, make_mesh())
  assert sentence in str(refused.value)


REWARDS = """
import numpy as np

looks = 0


def brightness(frames, prompts):
  return frames.mean(axis=(1, 2, 3, 4))


def decays(frames, prompts):
  global looks
  looks += 1
  noise = np.random.default_rng(looks).standard_normal(len(frames))
  return noise - (20 if looks > 6 else 0)
"""


@pytest.fixture
def rewards(reward_module):
  return reward_module(REWARDS)


def test_a_run_ends_and_its_best_student_is_the_result(
  runs, dollar, rewards, read_state, caplog
):
  workdir = runs.fresh()
  changes = {
    "distill__vsd_weight": 0.0,
    "reward__name": f"{rewards}:brightness",
    "log_every": 3,
    "guard": {
      "every": 3,
      "samples": 8,  # two calls of a reward a look
      "watch": (f"{rewards}:decays",),
    },
  }
  command = runs.command("reward", workdir, **changes)
  assert dollar(command)[0] == 0
  # looks at 0, 3, 6 and 9
  assert "the guard stopped the run at step 9: " in caplog.text
  rows = {row["step"]: row for row in metrics.read(workdir)}
  assert max(rows) == 9
  # the first look, at 0, stands beside the first update
  looks = [step for step, row in rows.items() if "guard/latent" in row]
  assert looks == [1, 3, 6, 9]
  watched = [rows[step][f"guard/{rewards}:decays"] for step in looks]
  assert watched[3] < -10 < min(watched[:3])

  state = read_state(workdir, 9)
  assert state["['networks']['guard']['ended']"] == 9
  best = load_file(workdir / WEIGHTS)["proj_out.bias"]
  bias = "['proj_out']['bias']"
  kept = state[f"['networks']['guard']['best_params']{bias}"]
  np.testing.assert_array_equal(best, kept)
  assert not np.array_equal(
    best, state[f"['networks']['student']['ema']{bias}"]
  )

  with Image.open(workdir / "guard.png") as picture:
    assert picture.width > picture.height > 100

  # the same command again has nothing to do, and says so
  caplog.clear()
  assert dollar(command)[0] == 0
  assert "the guard stopped the run at step 9: " in caplog.text
  assert max(row["step"] for row in metrics.read(workdir)) == 9
