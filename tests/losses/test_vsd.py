"""Variational score distillation: identities, and a target it must reach."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dollar_jax.diffusion.process import (
  FlowProcess,
  VPProcess,
  add_noise,
  levels,
)
from dollar_jax.losses.vsd import vsd_gradient, vsd_loss

SHAPE = (3, 2, 4, 4, 2)

gradient_fn = jax.jit(vsd_gradient)
slope_fn = jax.jit(jax.grad(vsd_loss))


def _arrays(seed=0):
  """A student's samples, the real and the fake prediction."""
  rng = np.random.default_rng(seed)
  return rng.standard_normal((3, *SHAPE)).astype(np.float32)


def test_fake_equal_to_real_is_no_gradient_at_all():
  x0, real, _ = _arrays()
  np.testing.assert_array_equal(gradient_fn(x0, real, real), np.zeros(SHAPE))
  # nor is there any where all three agree and the normaliser is zero
  np.testing.assert_array_equal(gradient_fn(real, real, real), np.zeros(SHAPE))


def test_gradient_is_the_papers():
  x0, real, fake = _arrays().astype(np.float64)
  for g, x, r, f in zip(gradient_fn(*_arrays()), x0, real, fake, strict=True):
    np.testing.assert_allclose(
      g, (f - r) / np.abs(x - r).mean(), rtol=1e-4, atol=1e-5
    )


def test_each_sample_has_its_own_normaliser():
  x0, real, fake = _arrays()
  g = gradient_fn(x0, real, fake)
  factor = np.ones(3, np.float32).reshape(3, 1, 1, 1, 1)
  factor[1] = 100.0
  scaled = gradient_fn(x0 * factor, real * factor, fake * factor)
  np.testing.assert_array_equal(scaled[::2], g[::2])
  # and the one that was scaled has the gradient it had
  np.testing.assert_allclose(scaled[1], g[1], rtol=1e-4)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.floats(0.015625, 64, width=32), st.integers(0, 9))
def test_gradient_has_no_unit(unit, seed):
  x0, real, fake = _arrays(seed)
  np.testing.assert_allclose(
    gradient_fn(unit * x0, unit * real, unit * fake),
    gradient_fn(x0, real, fake),
    rtol=1e-3,
    atol=1e-4,
  )


def test_gradient_has_one_size_at_every_latent_size():
  x0, real, fake = _arrays()
  many = (np.concatenate([a] * 4, axis=2) for a in (x0, real, fake))
  np.testing.assert_allclose(
    gradient_fn(*many)[:, :, :4], gradient_fn(x0, real, fake), rtol=1e-5
  )


def test_half_precision_comes_in_and_float32_goes_out():
  half = [a.astype(jnp.bfloat16) for a in _arrays()]
  g = gradient_fn(*half)
  assert g.dtype == jnp.float32
  exact = gradient_fn(*(a.astype(np.float32) for a in half))
  np.testing.assert_array_equal(g, exact)


def test_surrogates_gradient_is_the_direction_over_the_size():
  x0, real, fake = _arrays()
  g = gradient_fn(x0, real, fake)
  slope = slope_fn(x0, g)
  np.testing.assert_allclose(slope, g / x0.size, rtol=1e-6)


def test_surrogate_keeps_what_a_large_latent_would_round_away():
  """x0 - g and back, in float32, would lose g altogether."""
  x0, g = (np.full((1, 8), x, np.float32) for x in (1e6, 1e-3))
  slope = slope_fn(x0, g)
  np.testing.assert_allclose(slope, g / 8, rtol=1e-6)


def test_surrogate_equals_the_direct_vector_jacobian_product():
  """The same update of a network's weights as pulling g back through it."""
  x0, real, fake = _arrays()
  weights = _arrays(1)[0, 0, 0, 0]  # [4, 2]

  def generate(weights):
    return jnp.tanh(jnp.asarray(x0) @ weights.T @ weights)

  def loss(weights):
    samples = generate(weights)
    return vsd_loss(samples, vsd_gradient(samples, real, fake))

  @jax.jit
  def direct(weights):
    samples, pull = jax.vjp(generate, weights)
    return pull(vsd_gradient(samples, real, fake) / samples.size)

  (wanted,) = direct(weights)
  assert float(np.abs(wanted).max()) > 1e-3
  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(weights), wanted, rtol=1e-4, atol=1e-7
  )


def test_nothing_is_differentiated_through_the_direction():
  arrays = _arrays()

  def total(*arrays):
    return jnp.sum(vsd_gradient(*arrays))

  @jax.jit
  def slopes(*arrays):
    x0, direction, _ = arrays
    by_direction = jax.grad(vsd_loss, 1)(x0, direction)
    return *jax.grad(total, (0, 1, 2))(*arrays), by_direction

  for slope in slopes(*arrays):
    np.testing.assert_array_equal(slope, np.zeros(SHAPE))


def test_shapes_must_agree():
  x0, real, fake = _arrays()
  with pytest.raises(AssertionError):
    vsd_gradient(x0, real[:1], fake)
  with pytest.raises(AssertionError):
    vsd_loss(x0, fake[:1])


# A two-dimensional mixture of Gaussians as the target, a mixture with the
# wrong means and covariances as the generator; both scores in closed form.
MEANS = np.array([[2.0, 1.0], [-1.5, -1.0]], np.float32)
ROOTS = np.array(
  [[[0.8, 0.0], [0.5, 0.4]], [[0.5, 0.0], [-0.3, 0.9]]], np.float32
)


def _moments(means, roots):
  """Mean and covariance of an evenly weighted mixture."""
  mean = means.mean(0)
  within = roots @ roots.swapaxes(1, 2)
  between = (means - mean)[:, :, None] * (means - mean)[:, None]
  return mean, (within + between).mean(0)


def _posterior_mean(process, means, roots):
  """`f(x_t, t) = E[x0 | x_t]` of the mixture, exactly."""
  covariances = roots @ roots.swapaxes(1, 2)

  def one(x, alpha, sigma):
    noised = alpha**2 * covariances + sigma**2 * jnp.eye(2)  # [2, 2, 2]
    inverse = jnp.linalg.inv(noised)
    off = x - alpha * means
    pulled = jnp.einsum("kij,kj->ki", inverse, off)
    log_weight = -0.5 * jnp.sum(off * pulled, 1)
    log_weight -= 0.5 * jnp.log(jnp.linalg.det(noised))
    clean = means + alpha * jnp.einsum("kij,kj->ki", covariances, pulled)
    return jax.nn.softmax(log_weight) @ clean

  def predict(x_t, t):
    alpha, sigma = levels(process, t, x_t)
    return jax.vmap(one)(x_t, alpha[:, 0], sigma[:, 0])

  return predict


def _distil(process, with_fake_score, steps=300, batch=64):
  """Descends the VSD surrogate; returns the generator's means and roots."""
  start = {
    "means": np.array([[0.5, -0.5], [0.0, 0.3]], np.float32),
    "roots": np.stack([np.eye(2, dtype=np.float32)] * 2) * np.float32(0.3),
  }
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
  teacher = _posterior_mean(process, MEANS, ROOTS)

  def loss_fn(params, key):
    which_key, z_key, t_key, eps_key = jax.random.split(key, 4)
    which = jax.random.randint(which_key, (batch,), 0, 2)
    z = jax.random.normal(z_key, (batch, 2))
    spread = jnp.einsum("bij,bj->bi", params["roots"][which], z)
    x0 = params["means"][which] + spread
    held = jax.lax.stop_gradient(x0)
    t = jax.random.uniform(t_key, (batch,), minval=0.02, maxval=0.98)
    x_t = add_noise(process, held, jax.random.normal(eps_key, held.shape), t)
    fake = (
      _posterior_mean(process, **params)(x_t, t) if with_fake_score else held
    )
    return vsd_loss(x0, vsd_gradient(held, teacher(x_t, t), fake))

  def step(carry, key):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss_fn)(params, key), state)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params):
    keys = jax.random.split(jax.random.key(0), steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params

  return jax.device_get(run(start))


@pytest.mark.parametrize("process", [FlowProcess(), VPProcess()])
def test_vsd_reaches_a_gaussian_mixture(process):
  made = _distil(process, with_fake_score=True)
  mean, covariance = _moments(**made)
  wanted_mean, wanted_covariance = _moments(MEANS, ROOTS)
  np.testing.assert_allclose(mean, wanted_mean, atol=0.01)
  np.testing.assert_allclose(covariance, wanted_covariance, atol=0.01)
  # not the moments alone: each component found its own
  order = np.argsort(-made["means"][:, 0])
  np.testing.assert_allclose(made["means"][order], MEANS, atol=0.01)


def test_without_the_fake_score_the_samples_collapse():
  """Why it is there: pulling towards the teacher alone seeks modes."""
  made = _distil(FlowProcess(), with_fake_score=False)
  spread = np.abs(np.linalg.det(made["roots"]))
  assert (spread < 0.1 * np.abs(np.linalg.det(ROOTS))).all()
