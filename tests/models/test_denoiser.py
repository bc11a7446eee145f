"""A network's own output becomes an `x0` prediction, and nothing else does."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion.process import FlowProcess, VPProcess
from dollar_jax.models.denoiser import Denoiser, count_parameters, make_wan
from dollar_jax.models.wan import WanConfig

TINY = WanConfig(
  num_attention_heads=2,
  attention_head_dim=8,
  in_channels=3,
  out_channels=3,
  text_dim=5,
  freq_dim=16,
  ffn_dim=24,
  num_layers=1,
  scan=False,
)
LATENT, TEXT = (2, 4, 4, 3), (3, 5)

predict_x0 = jax.jit(Denoiser.predict_x0, static_argnums=0)
raw_output = jax.jit(Denoiser.raw, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class EchoConfig:
  gain: float = 1.0


class Echo(nn.Module):
  """Answers with what it was given: input, clock and words, summed."""

  config: EchoConfig

  @nn.compact
  def __call__(self, x, clock, text, text_mask=None):
    bias = self.param("bias", nn.initializers.zeros, (1,))
    mask = jnp.ones(text.shape[:2], bool) if text_mask is None else text_mask
    words = jnp.where(mask[..., None], text, 0.0).sum((1, 2))
    clock, words = (a.reshape(-1, 1, 1, 1, 1) for a in (clock, words))
    return self.config.gain * x + clock + words + bias


def _inputs(batch=2):
  rng = np.random.default_rng(0)
  x_t = rng.standard_normal((batch, *LATENT)).astype(np.float32)
  text = rng.standard_normal((batch, *TEXT)).astype(np.float32)
  t = np.array([1.0, 0.25], np.float32)[:batch]
  return x_t, t, text


@pytest.fixture(scope="module")
def wan():
  denoiser = make_wan(TINY, shift=3.0)
  init = jax.jit(lambda key: denoiser.init(key, LATENT, TEXT))
  return denoiser, init(jax.random.key(0))


def test_flow_prediction_is_the_input_less_time_times_velocity(wan):
  denoiser, params = wan
  x_t, t, text = _inputs()
  raw = np.asarray(raw_output(denoiser, params, x_t, t, text))
  assert float(np.std(raw)) > 0.01
  manual = x_t - t.reshape(2, 1, 1, 1, 1) * raw
  x0 = predict_x0(denoiser, params, x_t, t, text)
  assert x0.dtype == jnp.float32
  np.testing.assert_allclose(x0, manual, rtol=1e-5, atol=1e-6)


def test_vp_prediction_is_the_rotated_velocity():
  denoiser = Denoiser(Echo(EchoConfig(0.5)), VPProcess(), "v")
  x_t, t, text = _inputs()
  alpha, sigma = (
    np.asarray(jax.jit(level)(t)).reshape(2, 1, 1, 1, 1)
    for level in (denoiser.process.alpha, denoiser.process.sigma)
  )
  index = np.array([999.0, 249.0], np.float32).reshape(2, 1, 1, 1, 1)
  velocity = 0.5 * x_t + index + text.sum((1, 2)).reshape(2, 1, 1, 1, 1)
  np.testing.assert_allclose(
    predict_x0(denoiser, {"bias": np.zeros(1, np.float32)}, x_t, t, text),
    alpha * x_t - sigma * velocity,
    rtol=1e-5,
    atol=1e-4,
  )


@pytest.mark.parametrize(
  "process, clock",
  [(FlowProcess(), [1000.0, 250.0]), (VPProcess(), [999.0, 249.0])],
)
def test_network_is_told_the_time_on_its_own_clock(process, clock):
  denoiser = Denoiser(Echo(EchoConfig(0.0)), process, "x0")
  x_t, t, text = _inputs()
  for asked in (t, t.astype(jnp.bfloat16)):  # both are exact there
    bias = {"bias": np.zeros(1, np.float32)}
    raw = np.asarray(raw_output(denoiser, bias, x_t, asked, 0 * text))
    np.testing.assert_array_equal(raw[:, 0, 0, 0, 0], clock)
    assert denoiser.clock(asked).dtype == jnp.float32


def test_masked_words_are_not_heard_and_no_mask_is_all_words():
  denoiser = Denoiser(Echo(EchoConfig()), FlowProcess(), "x0")
  params = {"bias": np.zeros(1, np.float32)}
  x_t, t, text = _inputs()

  def predict(*mask):
    return np.asarray(predict_x0(denoiser, params, x_t, t, text, *mask))

  full, every = predict(), predict(np.ones((2, 3), bool))
  np.testing.assert_array_equal(full, every)
  some = predict(np.array([[True, False, False], [True, True, False]]))
  without = text[0, 1:].sum(), text[1, 2:].sum()
  np.testing.assert_allclose(
    (full - some)[:, 0, 0, 0, 0], np.stack(without), rtol=1e-3, atol=1e-3
  )


def test_with_config_changes_the_config_and_nothing_else(wan):
  denoiser, params = wan
  half = denoiser.with_config(dtype="bfloat16")
  assert half.config == dataclasses.replace(TINY, dtype="bfloat16")
  assert denoiser.config == TINY
  assert half.with_config(dtype="float32") == denoiser
  x_t, t, text = _inputs()
  exact = predict_x0(denoiser, params, x_t, t, text)
  rounded = predict_x0(half, params, x_t, t, text)
  assert rounded.dtype == jnp.float32
  assert 0 < float(np.abs(np.asarray(rounded) - exact).max()) < 0.1


def test_equal_denoisers_share_one_compilation(wan):
  denoiser, params = wan
  traces = []

  def predict(denoiser, x_t):
    traces.append(denoiser)
    _, t, text = _inputs()
    return denoiser.predict_x0(params, x_t, t, text)

  jitted = jax.jit(predict, static_argnums=0)
  x_t = _inputs()[0]
  first = jitted(denoiser, x_t)
  again = jitted(make_wan(TINY, shift=3.0), x_t)
  np.testing.assert_array_equal(first, again)
  assert len(traces) == 1
  assert hash(make_wan(TINY, shift=3.0)) == hash(denoiser)
  assert make_wan(TINY, shift=5.0) != denoiser


def test_parameters_are_plain_arrays_of_known_number(wan):
  _, params = wan
  leaves = jax.tree.leaves(params)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)
  assert count_parameters(params) == sum(np.prod(x.shape) for x in leaves)
  assert count_parameters({"a": jnp.ones((2, 3)), "b": [jnp.ones(4)]}) == 10


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_ranks_are_checked(wan, wrong):
  denoiser, params = wan
  arrays = list(_inputs())
  arrays[wrong] = arrays[wrong][None]
  with pytest.raises(AssertionError):
    denoiser.predict_x0(params, *arrays)


def test_latents_that_do_not_fit_are_refused(wan):
  denoiser, params = wan
  x_t, t, text = _inputs()
  with pytest.raises(ValueError, match=r"takes \[B, T, H, W, 3\]"):
    denoiser.predict_x0(params, x_t[..., :2], t, text)
  with pytest.raises(ValueError, match="do not divide into patches"):
    denoiser.predict_x0(params, x_t[:, :, :3], t, text)


@pytest.mark.parametrize(
  "times", [(1.0, 0.9), (0.875, 0.87), (0.5, 0.1)], ids=str
)
def test_each_time_is_answered_by_its_expert(times):
  denoiser = Denoiser(Echo(EchoConfig()), FlowProcess(), "flow", boundary=0.875)
  params = {
    "transformer": {"bias": np.array([3.0], np.float32)},
    "transformer_2": {"bias": np.array([-5.0], np.float32)},
  }
  x_t, _, text = _inputs()
  t = np.array(times, np.float32)

  def total(params):
    return denoiser.raw(params, x_t, t, text).sum()

  raw = np.asarray(raw_output(denoiser, params, x_t, t, text))
  one = dataclasses.replace(denoiser, boundary=None)
  for i, time in enumerate(times):
    expert = params["transformer" if time >= 0.875 else "transformer_2"]
    row = (a[i : i + 1] for a in (x_t, t, text))
    wanted = raw_output(one, expert, *row)
    np.testing.assert_allclose(raw[i : i + 1], wanted, rtol=1e-6)
  grads = jax.jit(jax.grad(total))(params)
  noisy = sum(time >= 0.875 for time in times)
  assert grads["transformer"]["bias"] == noisy * x_t[0].size
  assert grads["transformer_2"]["bias"] == (2 - noisy) * x_t[0].size


def test_only_one_expert_is_computed_on_one_side_of_the_boundary(wan):
  denoiser, params = wan
  experts = dataclasses.replace(denoiser, boundary=0.875)
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
  x_t, _, text = _inputs()
  t = np.array([1.0, 0.9], np.float32)
  both = {"transformer": params, "transformer_2": broken}
  # 0 * nan is nan: a masked answer would show in the gradient
  total = jax.jit(jax.grad(lambda p: experts.raw(p, x_t, t, text).sum()))
  grads = total(both)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
