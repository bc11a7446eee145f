"""The regression that trains teachers and fake scores."""

import chex
import jax.numpy as jnp

from dollar_jax.typing import Array


def denoising_loss(prediction: Array, target: Array) -> Array:
  """Mean squared error in the network's own prediction space, in float32.

  Args:
    prediction: [B, ...] raw output of a network.
    target: [B, ...] what `diffusion.process.target` gives.

  Returns:
    A scalar, the mean over batch and elements.
  """
  chex.assert_equal_shape([prediction, target])
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(error**2)
