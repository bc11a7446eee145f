"""The regression that trains teachers and fake scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.losses import denoising

denoising_loss = jax.jit(denoising.denoising_loss)
gradient = jax.jit(jax.grad(denoising.denoising_loss))


def _pair():
  rng = np.random.default_rng(0)
  return rng.standard_normal((2, 3, 2, 4, 4, 5)).astype(np.float32)


def test_loss_is_the_mean_squared_error():
  prediction, target = _pair()
  wanted = np.mean((prediction - target).astype(np.float64) ** 2)
  assert float(denoising_loss(prediction, target)) == pytest.approx(wanted)


def test_gradient_is_the_error_over_half_the_size():
  prediction, target = _pair()
  np.testing.assert_allclose(
    gradient(prediction, target),
    2 * (prediction - target) / prediction.size,
    rtol=1e-5,
    atol=1e-9,
  )


def test_best_guess_is_the_mean_of_the_targets():
  """Which is why a network so trained predicts a conditional mean."""
  targets = np.array([[1.0], [2.0], [6.0]], np.float32)

  def slope(guess):
    return np.sum(gradient(np.full((3, 1), guess, np.float32), targets))

  assert float(slope(3.0)) == pytest.approx(0, abs=1e-6)
  assert float(slope(3.5)) > 0


def test_half_precision_is_summed_in_float32():
  prediction = np.full((1, 64), 1 + 2**-7, jnp.bfloat16)  # next to 1
  loss = denoising_loss(prediction, np.zeros_like(prediction))
  assert loss.dtype == jnp.float32
  assert float(loss) == (1 + 2**-7) ** 2


def test_shapes_must_agree():
  prediction, target = _pair()
  with pytest.raises(AssertionError):
    denoising.denoising_loss(prediction, target[:1])
