"""Labels on their way: sums of rewards, real samples, threads and resuming."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from dollar_jax.models.latent_reward import LatentRewardConfig
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.train.config import (
  DataConfig,
  DistillConfig,
  RewardConfig,
  TrainConfig,
)
from dollar_jax.train.reward_tuner import RewardTuner
from dollar_jax.train.shared_labels import Decoder

LATENT, TEXT, BATCH = (1, 2, 2, 3), (2, 4), 4
MODULE = "tests_tuner_rewards"


@struct.dataclass
class _Codec:
  """Pixels are latents, 0 to 1."""

  scale: jnp.ndarray

  def decode(self, x0):
    return jnp.round(self.scale * jnp.clip(x0, 0, 1)).astype(jnp.uint8)


class _Student:
  """Its samples are half as bright as the data."""

  def samples(self, params, batch, key):
    return 0.5 * batch["latents"], batch["text"], batch["text_mask"]

  def prompt_rows(self, size):
    return np.arange(size)


class _Batches:
  """Batches that are all different."""

  def __init__(self):
    self._rng = np.random.default_rng(0)

  def next(self):
    batch = {
      "latents": self._rng.uniform(0, 1, (BATCH, *LATENT)).astype(np.float32),
      "text": np.ones((BATCH, *TEXT), np.float32),
      "text_mask": np.ones((BATCH, TEXT[0]), bool),
    }
    return batch, ["a"] * BATCH

  def all_prompts(self, prompts):
    return prompts


@pytest.fixture(autouse=True)
def rewards(tmp_path, monkeypatch):
  (tmp_path / f"{MODULE}.py").write_text(
    "import time\n"
    "import numpy as np\n"
    "from dollar_jax.rewards.base import register\n"
    "def brightness(frames, prompts):\n"
    "  return frames.mean(axis=(1, 2, 3, 4))\n"
    "def redness(frames, prompts):\n"
    "  return 1000 + frames[..., 0].mean(axis=(1, 2, 3))\n"
    "def slow(frames, prompts):\n"
    "  time.sleep(0.2)\n"
    "  return brightness(frames, prompts)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)


def _tuner(name, members=1, **reward):
  settings = {"warmup_labels": 8, "warmup_steps": 2, "labels": 4, "steps": 2}
  settings |= {"batch_size": 4, "capacity": 64} | reward
  config = TrainConfig(
    task="distill",
    data=DataConfig(batch_size=BATCH),
    distill=DistillConfig(reward_weight=1.0),
    reward=RewardConfig(name=name, **settings),
    latent_reward=LatentRewardConfig(width=8, depth=1, members=members),
  )
  codec = _Codec(np.float32(255))
  mesh = make_mesh()
  decoder = Decoder(codec, mesh)
  decoder.init()
  tuner = RewardTuner(config, _Student(), decoder, LATENT, TEXT, mesh)
  return tuner, tuner.init()


def _kept(saved):
  """The labelled latents that a checkpoint holds, as rows."""
  count = int(saved["count"])
  return saved["latents"][:count].reshape(count, -1)


def test_a_sum_of_rewards_is_logged_with_its_parts():
  name = f"{MODULE}:brightness - 0.5*{MODULE}:redness"
  tuner, state = _tuner(name)
  batches = _Batches()
  state, _ = tuner.warm_up(state, {}, batches)
  assert state.statistics.mean.shape == (2,)
  state, metrics = tuner.refresh(state, {}, batches, 1)
  guess, true = tuner.pairs[-4:].T
  assert metrics["lrm_reward"] == pytest.approx(guess.mean(), abs=1e-6)
  assert metrics["true_reward"] == pytest.approx(true.mean(), abs=1e-6)
  saved = tuner.state_dict()
  np.testing.assert_array_equal(saved["pairs"], tuner.pairs)
  values = saved["values"][8:12]
  parts = [
    metrics[f"true_reward/{MODULE}:{n}"] for n in ("brightness", "redness")
  ]
  np.testing.assert_allclose(parts, values.mean(axis=0), rtol=1e-6)
  mean, std = state.statistics.mean, state.statistics.std
  z = (values - mean) / std
  total = (z[:, 0] - 0.5 * z[:, 1]) / 1.5
  assert metrics["true_reward"] == pytest.approx(total.mean(), abs=1e-5)
  tuner.close()


@pytest.mark.parametrize("running", [False, True])
def test_statistics_run_only_if_they_are_to(running):
  tuner, state = _tuner(f"{MODULE}:brightness", running=running)
  batches = _Batches()
  state, _ = tuner.warm_up(state, {}, batches)
  assert state.statistics.count.tolist() == [8]
  state, _ = tuner.refresh(state, {}, batches, 1)
  assert state.statistics.count.tolist() == [12 if running else 8]
  tuner.close()


def test_real_samples_come_first_and_do_not_set_the_deviation():
  tuner, state = _tuner(f"{MODULE}:brightness", real_labels=8, real_steps=2)
  state, _ = tuner.warm_up(state, {}, _Batches())
  kept = _kept(tuner.state_dict())
  assert len(kept) == 16
  assert kept[:8].max() > 0.5 >= kept[8:].max()
  assert state.statistics.count.tolist() == [8]
  assert float(state.statistics.mean[0]) < 0.5 * 255 * 0.6
  counts = optax.tree_utils.tree_get_all_with_path(state.network, "count")
  assert max(int(count) for _, count in counts) == 4
  tuner.close()


def test_members_that_disagree_are_told_of():
  tuner, state = _tuner(f"{MODULE}:brightness", members=3)
  batches = _Batches()
  state, _ = tuner.warm_up(state, {}, batches)
  _, metrics = tuner.refresh(state, {}, batches, 1)
  assert metrics["lrm_disagreement"] > 0
  tuner.close()
  tuner, state = _tuner(f"{MODULE}:brightness")
  _, metrics = tuner.refresh(state, {}, batches, 1)
  assert "lrm_disagreement" not in metrics
  tuner.close()


def test_in_the_background_no_label_is_lost_or_used_twice():
  tuner, state = _tuner(f"{MODULE}:slow", labelling="background", workers=2)
  batches = _Batches()
  state, _ = tuner.warm_up(state, {}, batches)
  for step in (1, 2, 3):
    state, _ = tuner.refresh(state, {}, batches, step)
  saved = tuner.state_dict()
  tuner.close()
  # two batches of the warm-up and three since, each sample once
  assert len(np.unique(_kept(saved), axis=0)) == len(_kept(saved)) == 20
  assert int(saved["counts"][0]) == 5

  again, state = _tuner(f"{MODULE}:slow", labelling="background")
  again.load_state(saved)
  state, _ = again.refresh(state, {}, batches, 4)
  kept = _kept(again.state_dict())
  again.close()
  assert len(np.unique(kept, axis=0)) == len(kept) == 24


def test_labels_do_not_get_older_than_they_may():
  tuner, state = _tuner(f"{MODULE}:slow", labelling="background", max_age=1)
  batches, ages = _Batches(), []
  state, _ = tuner.warm_up(state, {}, batches)
  for step in range(1, 7):
    state, metrics = tuner.refresh(state, {}, batches, step)
    if "label_age" in metrics:
      ages.append(metrics["label_age"])
  tuner.close()
  assert max(ages) == 1  # the reward is slower than the updates
