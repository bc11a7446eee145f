"""A reward's gradient, through a decoder, reaches the student."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from dollar_jax.models.pixels import to_frames
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.rewards.base import Differentiable, get_reward, register
from dollar_jax.train import metrics
from dollar_jax.train.config import DistillConfig, RewardConfig, TrainConfig
from dollar_jax.train.pixel_reward import PixelReward

LATENT = (2, 3, 4, 5)
NAME = "tests_brightness_of_prompt"


@struct.dataclass
class _Codec:
  """Colours are a linear map of the channels; four frames a latent."""

  basis: jnp.ndarray

  def decode_signal(self, x0):
    return jnp.repeat(x0 @ self.basis, 4, axis=1)

  def decode(self, x0):
    return to_frames(self.decode_signal(x0))


def _make(dtype, shapes):
  assert dtype == "float32"
  weight = jax.ShapeDtypeStruct((3,), np.float32) if shapes else np.arange(3.0)

  def fn(params, pixels, conditions):
    bright = jnp.mean(pixels @ params, axis=(1, 2, 3))
    return bright**2 * conditions[:, 0]

  def condition(prompts):
    return np.array([[len(prompt)] for prompt in prompts], np.float32)

  return Differentiable(weight, fn, condition, 1)


@register(NAME, num_frames=2, differentiable=_make)
def _reward(frames, prompts):
  bright = np.mean(frames[:, :2] @ np.arange(3.0), axis=(1, 2, 3))
  return bright**2 * np.array([len(prompt) for prompt in prompts])


def _codec():
  rng = np.random.default_rng(0)
  return _Codec(rng.normal(size=(5, 3)).astype(np.float32) / 5)


def _config(name=NAME):
  distill = DistillConfig(vsd_weight=0.0, pixel_weight=1.0)
  reward = RewardConfig(name=name)
  return TrainConfig(task="distill", distill=distill, reward=reward)


def _x0():
  shape = (4, *LATENT)
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_force_is_the_gradient_of_the_reward_of_decoded_frames(sign):
  name = NAME if sign == 1 else f"- {NAME}"
  pixels = PixelReward(_config(name), _codec(), make_mesh())
  prompts = ["a", "bb", "ccc", "dddd"]
  frozen, conditions = pixels.init(), pixels.conditions(prompts)
  x0 = _x0()
  value, force = jax.jit(pixels.force)(frozen, x0, conditions)
  frames = np.asarray(_codec().decode(x0))
  true = get_reward(NAME)(frames, prompts)
  # frames are rounded, pixels are not
  np.testing.assert_allclose(value, np.mean(true), rtol=5e-3)
  # numerically, of every clip along a random direction
  way = np.random.default_rng(2).normal(size=x0.shape).astype(np.float32)

  def values(x0):
    shown = get_reward(NAME).drawn(
      jnp.clip((_codec().decode_signal(x0) + 1) * 127.5, 0, 255)
    )
    return _make("float32", False).fn(np.arange(3.0), shown, conditions)

  slope = (values(x0 + 1e-2 * way) - values(x0 - 1e-2 * way)) / 2e-2
  along = np.sum(np.asarray(force) * way, axis=(1, 2, 3, 4))
  ratio = along / np.asarray(slope)
  np.testing.assert_allclose(ratio, np.full(4, ratio.mean()), rtol=0.05)
  assert np.sign(ratio.mean()) == sign
  np.testing.assert_allclose(np.sqrt(np.mean(force**2)), 1, rtol=1e-5)


def test_a_constant_reward_pushes_nowhere():
  @struct.dataclass
  class _Black(_Codec):
    def decode_signal(self, x0):
      return super().decode_signal(x0) - 100.0  # all of it is clipped

  pixels = PixelReward(_config(), _Black(_codec().basis), make_mesh())
  conditions = pixels.conditions(["a"] * 4)
  _, force = pixels.force(pixels.init(), _x0(), conditions)
  assert not np.asarray(force).any()


def test_a_plan_needs_shapes_alone():
  shapes = jax.eval_shape(lambda: _codec())
  pixels = PixelReward(_config(), shapes, make_mesh())
  assert pixels.shapes["reward"].shape == (3,)
  assert pixels.conditions_shape(4).shape == (4, 1)


@pytest.mark.parametrize(
  "name", ["jpeg_size", "sharpness + temporal_flickering"]
)
def test_rewards_without_a_gradient_are_refused(name):
  with pytest.raises(ValueError, match=r"has no gradient .*reward_weight"):
    PixelReward(_config(name), _codec(), make_mesh())


@pytest.mark.parametrize("name", ["sharpness", "temporal_flickering"])
def test_both_forms_of_a_reward_are_one(name):
  reward = get_reward(name)
  rng = np.random.default_rng(3)
  frames = rng.integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
  form = reward.differentiable("float32", False)
  pixels = jnp.asarray(frames, jnp.float32)
  found = form.fn(form.params, pixels, form.condition([""] * 3))
  np.testing.assert_allclose(found, reward(frames, [""] * 3), rtol=1e-5)


def test_a_run_logs_the_reward_of_its_pixels(runs, read_state):
  workdir = runs.whole("pixels")
  rows = metrics.read(workdir)
  values = [row["pixel_reward"] for row in rows]
  assert np.mean(values[-2:]) > np.mean(values[:2])
  assert not any("reward" in name for name in read_state(workdir, len(rows)))


def test_the_weight_alone_climbs_and_not_while_consistency_comes_first():
  config = DistillConfig(vsd_weight=0.0, cd_weight=0.0, pixel_weight=1.0)
  TrainConfig(task="distill", distill=config)
  assert config.climbing == ("pixel_weight",)
  assert config.acts_on_samples
  first = dataclasses.replace(config, cd_weight=0.5).consistency_alone
  assert not first.climbing
  assert not first.acts_on_samples
