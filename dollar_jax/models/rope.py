"""Three-dimensional rotary positions (RoFormer, arXiv 2104.09864)."""

import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array


def axis_angles(length: int, dim: int, theta: float) -> np.ndarray:
  """Returns [length, dim / 2] angles of one axis, in float64."""
  frequency = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  return np.outer(np.arange(length, dtype=np.float64), frequency)


def wan_rotary(
  grid: tuple[int, int, int], head_dim: int, theta: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines for a [T, H, W] grid of tokens, as Wan splits them.

  Height and width each get `2 (head_dim // 6)` channels, time the rest.

  Returns:
    (cos, sin), each [T*H*W, head_dim / 2] float32.
  """
  spatial = 2 * (head_dim // 6)
  dims = (head_dim - 2 * spatial, spatial, spatial)
  angles = []
  for axis, (length, dim) in enumerate(zip(grid, dims, strict=True)):
    shape = [1, 1, 1, dim // 2]
    shape[axis] = length
    angle = axis_angles(length, dim, theta).reshape(shape)
    angles.append(np.broadcast_to(angle, (*grid, dim // 2)))
  angle = np.concatenate(angles, axis=-1).reshape(-1, head_dim // 2)
  return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates neighbouring channel pairs of `x [B, L, N, K]` in float32.

  `cos` and `sin` are [L, K / 2]; shape and type of `x` are kept.
  """
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos[:, None, :], sin[:, None, :]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
