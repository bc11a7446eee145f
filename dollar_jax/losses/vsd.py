"""Variational score distillation (arXiv 2305.16213; DMD2, arXiv 2405.14867).

The gradient is injected as it stands: the loss below has a meaningless value
and exactly the wanted gradient, so no small number is ever added to a large
latent and rounded away.
"""

import chex
import jax
import jax.numpy as jnp

from dollar_jax.typing import Array


def vsd_gradient(
  x0: Array, real_x0: Array, fake_x0: Array, eps: float = 1e-6
) -> Array:
  """The direction from real to fake, on a scale of its own per sample.

  `g = (fake - real) / mean |x0 - real|` with the mean over all axes but the
  batch (DMD, arXiv 2311.18828, Eq. 8), in float32, under stop-gradient. It
  has no unit: it is the same at every latent size and scale.

  Args:
    x0: [B, ...] the student's samples.
    real_x0: [B, ...] the guided teacher's prediction at a noised `x0`.
    fake_x0: [B, ...] the fake score's prediction at the same point.
    eps: added to the normaliser.

  Returns:
    g [B, ...] float32; exactly 0 where fake equals real.
  """
  chex.assert_equal_shape([x0, real_x0, fake_x0])
  x0, real_x0, fake_x0 = (
    jax.lax.stop_gradient(x).astype(jnp.float32) for x in (x0, real_x0, fake_x0)
  )
  axes = tuple(range(1, x0.ndim))
  scale = jnp.mean(jnp.abs(x0 - real_x0), axis=axes, keepdims=True)
  return (fake_x0 - real_x0) / (scale + eps)


def vsd_loss(x0: Array, gradient: Array) -> Array:
  """A scalar whose gradient with respect to `x0` is `gradient / size`.

  Equal in gradient to `0.5 mean (x0 - sg(x0 - gradient))²`, without forming
  the difference. "size" is the number of elements of `x0`, batch included.

  Args:
    x0: [B, ...] the student's samples.
    gradient: [B, ...] direction of ascent of the loss.
  """
  chex.assert_equal_shape([x0, gradient])
  gradient = jax.lax.stop_gradient(gradient).astype(jnp.float32)
  return jnp.mean(x0.astype(jnp.float32) * gradient)
