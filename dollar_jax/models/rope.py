"""Positions in space-time: rotary (RoFormer, arXiv 2104.09864), sine waves."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array

THETA = 10000.0
"""The longest period of a position, over 2π."""


def axis_angles(positions: np.ndarray, dim: int) -> np.ndarray:
  """Returns [N, dim / 2] float64 angles of positions [N] on one axis."""
  frequency = THETA ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  return np.outer(np.asarray(positions, np.float64), frequency)


def _rotary(
  axes: Sequence[np.ndarray], dims: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines of a grid, given each axis's positions and channels."""
  grid = [len(positions) for positions in axes]
  angles = []
  for axis, (positions, dim) in enumerate(zip(axes, dims, strict=True)):
    shape = [1, 1, 1, dim // 2]
    shape[axis] = len(positions)
    angle = axis_angles(positions, dim).reshape(shape)
    angles.append(np.broadcast_to(angle, (*grid, dim // 2)))
  angle = np.concatenate(angles, axis=-1).reshape(-1, sum(dims) // 2)
  return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def wan_rotary(
  grid: tuple[int, int, int], head_dim: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines for a [T, H, W] grid of tokens, as Wan splits them.

  Height and width each get `2 (head_dim // 6)` channels, time the rest.

  Returns:
    (cos, sin), each [T*H*W, head_dim / 2] float32.
  """
  spatial = 2 * (head_dim // 6)
  dims = (head_dim - 2 * spatial, spatial, spatial)
  return _rotary([np.arange(length) for length in grid], dims)


def cogvideox_rotary(
  grid: tuple[int, int, int],
  head_dim: int,
  base: tuple[int, int],
  stretch: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines for a [T, H, W] grid of tokens, as CogVideoX splits them.

  A quarter of the channels goes to time, the rest half and half to height and
  width. `stretch` (1.0) fits the grid, its shape kept, into the middle of the
  `base` rows and columns of training; without (1.5) positions are counted.

  Returns:
    (cos, sin), each [T*H*W, head_dim / 2] float32.
  """
  frames, height, width = grid
  rows, columns = np.arange(height), np.arange(width)
  if stretch:
    # diffusers' get_resize_crop_region_for_grid; Python rounds halves to even
    upright = height / width > base[0] / base[1]
    fit = base[0] / height if upright else base[1] / width
    sizes = round(fit * height), round(fit * width)
    starts = [round((b - s) / 2) for b, s in zip(base, sizes, strict=True)]
    rows, columns = (
      np.linspace(start, (start + size) * (n - 1) / n, n)
      for start, size, n in zip(starts, sizes, (height, width), strict=True)
    )
  dims = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
  return _rotary([np.arange(frames), rows, columns], dims)


def sine_positions(
  grid: tuple[int, int, int], dim: int, frame_scale: float, scale: float
) -> np.ndarray:
  """Sine-wave positions of a [T, H, W] grid of tokens, as CogVideoX 2B adds.

  A quarter of the channels goes to time, the rest half and half to width and
  height, each with its sines first.

  Returns:
    [T*H*W, dim] float32.
  """
  axes = [
    np.arange(grid[0]) / frame_scale,
    np.arange(grid[2]) / scale,
    np.arange(grid[1]) / scale,
  ]
  waves = []
  for place, positions, share in zip(
    (0, 2, 1), axes, (dim // 4, dim // 8 * 3, dim // 8 * 3), strict=True
  ):
    angle = axis_angles(positions, share)
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    shape = [1, 1, 1, share]
    shape[place] = len(positions)
    waves.append(np.broadcast_to(wave.reshape(shape), (*grid, share)))
  return np.concatenate(waves, -1).reshape(-1, dim).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates neighbouring channel pairs of `x [B, L, N, K]` in float32.

  `cos` and `sin` are [L, K / 2]; shape and type of `x` are kept.
  """
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos[:, None, :], sin[:, None, :]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
