"""How CLIP is shown images."""

import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue that CLIP was trained on, in [0, 1]."""


def preprocess(frames: Array, size: int) -> Array:
  """Images as CLIP was shown them; jit it with `size` static.

  The short side is resized to `size` by antialiased bicubic interpolation, the
  middle cut out and the colours normalised. Rounds to whole numbers after
  columns and after rows, as Pillow does. Of an odd margin the smaller half
  goes first, as in transformers; torchvision's cut may lie one pixel further.

  Args:
    frames: uint8 [B, H, W, 3]; or float32 in [0, 255], of which nothing is
      rounded, so that there is a gradient.
    size: rows and columns of the result.

  Returns:
    float32 [B, size, size, 3].

  Raises:
    ValueError: if the frames are not such.
  """
  _check_frames(frames)
  count, rows, columns, _ = frames.shape
  short = min(rows, columns)
  tall, wide = (int(size * side / short) for side in (rows, columns))
  x, whole = frames.astype(jnp.float32), frames.dtype == jnp.uint8
  for shape in ((count, rows, wide, 3), (count, tall, wide, 3)):
    x = jax.image.resize(x, shape, "cubic")
    x = jnp.clip(jnp.floor(x + 0.5) if whole else x, 0, 255)
  top, left = (tall - size) // 2, (wide - size) // 2
  x = x[:, top : top + size, left : left + size]
  return _standardize(x)


def letterbox(frames: Array, size: int) -> Array:
  """Images as HPSv2 was shown them; jit it with `size` static.

  The long side is resized to `size` by antialiased bicubic interpolation,
  neither rounded nor clipped, what the short side lacks is black on both sides,
  and the colours are normalised. That is what the package hpsv2 1.2.0 asks for
  with `light_augmentation=True`; where the long side is `size` already that
  leaves the black out, and its network takes no such image.

  Args:
    frames: uint8, or float32 in [0, 255], [B, H, W, 3].
    size: rows and columns of the result.

  Returns:
    float32 [B, size, size, 3].

  Raises:
    ValueError: if the frames are not such.
  """
  _check_frames(frames)
  count, rows, columns, _ = frames.shape
  scale = size / max(rows, columns)
  tall, wide = (round(side * scale) for side in (rows, columns))
  x = frames.astype(jnp.float32)
  x = jax.image.resize(x, (count, tall, wide, 3), "cubic")
  top, left = (size - tall) // 2, (size - wide) // 2
  margins = (top, size - tall - top), (left, size - wide - left)
  return _standardize(jnp.pad(x, ((0, 0), *margins, (0, 0))))


def _check_frames(frames: Array) -> None:
  known = frames.dtype in (jnp.uint8, jnp.float32)
  if frames.ndim != 4 or frames.shape[3] != 3 or not known:
    raise ValueError(
      f"frames are {frames.dtype} {frames.shape}; CLIP takes uint8 or float32 "
      "[B, H, W, 3]"
    )


def _standardize(x: Array) -> Array:
  """Colours in [0, 255] as CLIP's towers take them."""
  return (x / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
