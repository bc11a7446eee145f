"""Convolutions over time, rows and columns as convolutions of single frames.

The same sums in another order. XLA's CPU backend packs the patches of a 3-D
convolution several times slower than those of a 2-D one; its other backends
have no need of this.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array

Padding = tuple[tuple[int, int], tuple[int, int]]
"""(before, after) of rows and of columns."""

_FALL = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
"""[parity, small, large]: on which of two rows of a small frame the three that
a row of the large one sees fall."""


def convolve(
  x: Array, kernel: Array, strides: tuple[int, int, int], padding: Padding
) -> Array:
  """Convolves clips; time is not padded.

  Args:
    x: [B, T, H, W, C].
    kernel: [t, h, w, C, D].
    strides: of time, rows and columns.
    padding: of rows and columns; with a kernel of one pixel neither strides
      nor padding of these.

  Returns:
    [B, T', H', W', D].
  """
  places = x.shape[1] - len(kernel) + 1
  return sum(
    _of_frames(x[:, i : i + places : strides[0]], tap, strides[1:], padding)
    for i, tap in enumerate(kernel)
  )


def shares(x: Array, kernel: Array, padding: Padding) -> list[Array]:
  """What each frame adds to itself and to the frames that come after it.

  Patches are packed once for all of a frame's shares.

  Args:
    x: [B, T, H, W, C].
    kernel: [t, h, w, C, D], the frame's own weights last.
    padding: of rows and columns.

  Returns:
    t times [B, T, H', W', D], the i-th for the frame i later.
  """
  taps = jnp.concatenate(kernel[::-1], axis=-1)
  return jnp.split(_of_frames(x, taps, (1, 1), padding), len(kernel), axis=-1)


def convolve_enlarged(x: Array, kernel: Array) -> Array:
  """Convolves frames of twice the size, each pixel standing for four.

  A pixel's nine weights fall on four pixels of the small frame, and which fall
  together depends on whether its row and column are even: four small
  convolutions, 4/9 of the work.

  Args:
    x: [B, T, H, W, C].
    kernel: [1, 3, 3, C, D], float32; one pixel of padding around.

  Returns:
    [B, T, 2 H, 2 W, D].
  """
  rows, columns = x.shape[2:4]
  taps = jnp.einsum("ipr,jqs,rscd->pqcijd", _FALL, _FALL, kernel[0])
  taps = taps.reshape(*taps.shape[:3], -1).astype(x.dtype)
  y = _of_frames(x, taps, (1, 1), ((1, 1), (1, 1)))
  y = y.reshape(*y.shape[:4], 2, 2, -1)
  y = [
    jnp.stack([y[:, :, i : i + rows, j : j + columns, i, j] for j in (0, 1)], 4)
    for i in (0, 1)
  ]
  y = jnp.stack(y, 3)  # [B, T, H, 2, W, 2, D]
  return y.reshape(*x.shape[:2], 2 * rows, 2 * columns, -1)


def _of_frames(
  x: Array, kernel: Array, strides: tuple[int, int], padding: Padding
) -> Array:
  """A 2-D convolution by a kernel [h, w, C, D]; of one pixel, a product."""
  if kernel.shape[:2] == (1, 1):
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], -1)
  y = jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]),
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(*x.shape[:2], *y.shape[1:])
