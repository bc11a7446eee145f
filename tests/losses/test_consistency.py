"""Consistency distillation: the distance, and a teacher that is consistent."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion.process import FlowProcess, add_noise, levels
from dollar_jax.diffusion.solvers import ddim_step
from dollar_jax.diffusion.timesteps import consistency_pairs, teacher_grid
from dollar_jax.losses.consistency import pseudo_huber

distance = jax.jit(pseudo_huber, static_argnums=2)
slope = jax.jit(jax.grad(pseudo_huber), static_argnums=2)


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def _rms(error):
  return float(np.sqrt(np.mean(np.asarray(error, np.float64) ** 2)))


def test_equal_arrays_are_at_distance_0():
  x = _normal(0, 3, 2, 4, 4, 2)
  assert float(distance(x, x, 0.05)) == 0.0
  np.testing.assert_array_equal(slope(x, x, 0.05), np.zeros_like(x))


def test_a_small_error_counts_squared():
  error = 1e-2 * _normal(1, 1, 4, 4)
  wanted = _rms(error) ** 2 / (2 * 1.0)  # c = 1
  assert float(distance(error, 0 * error, 1.0)) == pytest.approx(
    wanted, rel=1e-2
  )


def test_a_large_error_counts_by_its_size():
  error = 1e3 * _normal(2, 1, 4, 4)
  wanted = _rms(error) - 0.05
  assert float(distance(error, 0 * error, 0.05)) == pytest.approx(wanted)


def test_each_sample_counts_by_its_own_size():
  """The mean of the distances, not the distance of the mean."""
  error = np.array([[3.0, 3.0], [0.04, 0.04]], np.float32)
  wanted = np.mean(np.sqrt(np.array([3.0, 0.04]) ** 2 + 0.01) - 0.1)
  ours = float(distance(error, 0 * error, 0.1))
  assert ours == pytest.approx(wanted, rel=1e-5)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  st.sampled_from([(2, 3), (2, 4, 8, 8, 3)]),
  st.floats(1e-3, 1e4),
  st.sampled_from([0.01, 1.0]),
)
def test_force_is_bounded_at_any_size_of_latent_and_error(
  shape, size, constant
):
  """Gradient times elements: RMS rms / sqrt(rms² + c²), never above 1."""
  error = np.float32(size) * _normal(3, *shape)
  force = error.size * np.asarray(slope(error, 0 * error, constant))
  for row, own in zip(force, error, strict=True):
    wanted = _rms(own) / np.hypot(_rms(own), constant)
    assert _rms(row) == pytest.approx(wanted, rel=1e-3)
    assert _rms(row) <= 1 + 1e-5


def test_half_precision_is_compared_in_float32():
  x = np.full((2, 64), 256.0, jnp.bfloat16)
  y = np.full_like(x, 258.0)  # one step of bfloat16 from there
  assert distance(x, y, 1e-3).dtype == jnp.float32
  assert float(distance(x, y, 1e-3)) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("constant", [0.0, -1.0])
def test_constant_must_be_positive(constant):
  with pytest.raises(ValueError, match="must be above 0"):
    pseudo_huber(np.ones((1, 2)), np.ones((1, 2)), constant)


def test_shapes_must_agree():
  with pytest.raises(AssertionError):
    pseudo_huber(np.ones((2, 3)), np.ones((2, 1)), 0.1)


def _straight(x_t, t):
  """The `x0` of the flow that carries noise z straight to 1 + z / 2."""
  alpha, sigma = levels(FlowProcess(), t, x_t)
  return 1 + 0.5 * (x_t - alpha) / (0.5 * alpha + sigma)


def _bent(x_t, t):
  """The `x0` of data from N(1, 1/4): its paths end there too, but curve."""
  alpha, sigma = levels(FlowProcess(), t, x_t)
  gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
  return 1 + gain * (x_t - alpha)


@pytest.mark.parametrize("jump", [1, 5, 15])
def test_straight_teacher_has_nothing_left_to_teach(jump):
  """Its own prediction is the same all the way down: the loss is 0."""
  process, grid = FlowProcess(), teacher_grid(20, 3.0)

  @jax.jit
  def losses(x0, eps):
    t, s = consistency_pairs(jax.random.key(0), 64, grid, jump)
    x_t = add_noise(process, x0, eps, t)

    def loss(predict):
      jumped = ddim_step(process, x_t, predict(x_t, t), t, s)
      return pseudo_huber(predict(x_t, t), predict(jumped, s), 0.05)

    return loss(_straight), loss(_bent)

  straight, bent = losses(_normal(4, 64, 5), _normal(5, 64, 5))
  assert float(straight) < 1e-6
  assert float(bent) > 1e-3
