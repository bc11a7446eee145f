"""Rewards that look at single frames: JPEG size, sharpness and BRISQUE."""

import functools
import io
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dollar_jax.rewards.base import Differentiable, need, register
from dollar_jax.typing import Array, PyTree

JPEG_QUALITY = 95
"""Pillow's quality, with its default 4:2:0 chroma, as in DDPO's reward
(arXiv 2305.13301). Sizes depend a little on the libjpeg that Pillow carries.
"""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@register("jpeg_size", kind="image")
def jpeg_size(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Kilobytes (1,000 bytes) of a frame as JPEG, mean over frames.

  Detail costs bytes, so higher means busier; see `jpeg_compressibility` for
  the other direction. Not differentiable in any way: the frames go through
  Pillow's encoder in memory.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: not read.

  Returns:
    float32 [B].
  """
  del prompts
  sizes = [
    np.mean([_jpeg_bytes(frame) for frame in clip]) / 1000 for clip in frames
  ]
  return np.array(sizes, np.float32)


@register("jpeg_compressibility", kind="image")
def jpeg_compressibility(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Minus `jpeg_size`: higher means fewer kilobytes, smoother frames.

  Args and returns: as `jpeg_size`.
  """
  return -jpeg_size(frames, prompts)


def _smooth_sharpness(dtype: str, shapes: bool) -> Differentiable:
  del dtype, shapes  # no network

  def fn(params: PyTree, pixels: Array, conditions: Array) -> Array:
    del params, conditions
    variance = jnp.var(_laplacian(pixels @ _LUMA), axis=(2, 3))
    return jnp.mean(variance, axis=1)

  return Differentiable({}, fn)


@register("sharpness", kind="image", differentiable=_smooth_sharpness)
def sharpness(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Variance of the Laplacian of a frame's luma, mean over frames.

  The Laplacian is the 4-neighbour one, at pixels that have four neighbours
  (Pech-Pacheco et al., ICPR 2000). Luma is in [0, 255], so the unit is its
  square. Noise counts as sharp.

  Args:
    frames: uint8 [B, F, H, W, 3], H and W at least 3.
    prompts: not read.

  Returns:
    float32 [B].

  Raises:
    ValueError: for smaller frames.
  """
  del prompts
  if min(frames.shape[2:4]) < 3:
    raise ValueError(
      f"frames are {frames.shape[2]}x{frames.shape[3]} pixels; sharpness "
      "needs at least 3x3"
    )
  return np.array([_laplacian_variance(clip) for clip in frames], np.float32)


@register("brisque", kind="image", num_frames=8)
def brisque(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Minus BRISQUE, mean over eight frames: higher means fewer distortions.

  Of natural images (Mittal et al., IEEE TIP 2012), by the model that the
  package `brisque` carries, which gives 0 for perfect and about 100 for
  spoilt images. The package needs OpenCV, scikit-image and libsvm; the last
  is compiled when it is installed.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: not read.

  Returns:
    float32 [B]; NaN where the statistics of a frame are not defined, such as
    those of one without any detail.

  Raises:
    ValueError: if the package is not installed.
  """
  del prompts
  judge = _brisque()
  with np.errstate(all="ignore"):
    scores = [[judge.score(frame) for frame in clip] for clip in frames]
  return -np.mean(scores, axis=1, dtype=np.float32)


@functools.cache
def _brisque() -> Any:
  package = need("brisque", "brisque")

  class Brisque(package.BRISQUE):
    def scale_features(self, features: Any) -> np.ndarray:
      # arrays of one number among them are refused by NumPy 2.4
      return super().scale_features([np.asarray(x).item() for x in features])

  return Brisque(url=False)


def _jpeg_bytes(frame: np.ndarray) -> int:
  with io.BytesIO() as buffer:
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.tell()


def _laplacian_variance(clip: np.ndarray) -> float:
  return float(_laplacian(clip @ _LUMA).var(axis=(1, 2)).mean())


def _laplacian(luma: Any) -> Any:
  """Of pictures [..., H, W], at the pixels that have four neighbours."""
  inner = luma[..., 1:-1, 1:-1]
  around = (
    luma[..., :-2, 1:-1]
    + luma[..., 2:, 1:-1]
    + luma[..., 1:-1, :-2]
    + luma[..., 1:-1, 2:]
  )
  return around - 4 * inner
