"""Consistency distillation's distance (arXiv 2303.01469, 2310.14189)."""

import chex
import jax.numpy as jnp

from dollar_jax.typing import Array


def pseudo_huber(prediction: Array, target: Array, constant: float) -> Array:
  """Pseudo-Huber distance of each sample, from its RMS error.

  `sqrt(mean error² + c²) - c` over all axes but the batch, in float32. Its
  gradient, times the number of elements, has an RMS of at most 1 whatever
  the latent's size: the unit of VSD's gradient and of the reward's force.

  Args:
    prediction: [B, ...].
    target: [B, ...]; the caller stops its gradient.
    constant: c, in the latent's unit; error far below it counts squared.

  Returns:
    The mean over the batch, a scalar.

  Raises:
    ValueError: if the constant is not positive.
  """
  if constant <= 0:
    raise ValueError(f"Huber constant is {constant}; it must be above 0")
  chex.assert_equal_shape([prediction, target])
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  square = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
  return jnp.mean(jnp.sqrt(square + constant**2) - constant)
