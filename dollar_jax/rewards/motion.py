"""Rewards that look at how frames follow each other."""

import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from dollar_jax.rewards.base import Differentiable, need, register
from dollar_jax.typing import Array, PyTree

_FASTEST = 0.05
"""Share of the pixels whose motion counts, as in VBench's dynamic degree."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def _smooth_flickering(dtype: str, shapes: bool) -> Differentiable:
  del dtype, shapes  # no network

  def fn(params: PyTree, pixels: Array, conditions: Array) -> Array:
    del params, conditions
    difference = jnp.abs(pixels[:, 1:] - pixels[:, :-1])
    return 1 - jnp.mean(difference, axis=(1, 2, 3, 4)) / 255

  return Differentiable({}, fn)


@register(
  "temporal_flickering", kind="video", differentiable=_smooth_flickering
)
def temporal_flickering(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """1 − mean absolute difference of neighbouring frames / 255.

  VBench's definition (arXiv 2311.17982, `temporal_flickering.py`), in [0, 1]:
  a still clip scores 1, so it also rewards the absence of motion.

  Args:
    frames: uint8 [B, F, H, W, 3], F at least 2.
    prompts: not read.

  Returns:
    float32 [B].

  Raises:
    ValueError: for clips of one frame.
  """
  del prompts
  if frames.shape[1] < 2:
    raise ValueError(
      "clips have 1 frame; temporal_flickering compares neighbours and needs "
      "at least 2"
    )
  return np.array([_steadiness(clip) for clip in frames], np.float32)


@register("motion", kind="video")
def motion(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """How far things move from frame to frame, in % of the shorter side.

  The mean length of the fastest twentieth of the vectors of dense optical flow
  (OpenCV's DIS, arXiv 1603.03590), over all neighbouring frames. VBench's
  dynamic degree (arXiv 2311.17982) takes the same share of RAFT's vectors and
  asks whether they exceed a threshold. Noise that flickers counts as motion.

  Args:
    frames: uint8 [B, F, H, W, 3], F at least 2, H and W at least 16.
    prompts: not read.

  Returns:
    float32 [B].

  Raises:
    ValueError: for fewer or smaller frames, or without OpenCV.
  """
  del prompts
  side = min(frames.shape[2:4])
  if frames.shape[1] < 2 or side < 16:
    raise ValueError(
      f"clips have {frames.shape[1]} frames of {frames.shape[2]}x"
      f"{frames.shape[3]}; motion compares neighbours and needs at least 2 "
      "of 16x16"
    )
  return np.array([100 * _speed(clip) / side for clip in frames], np.float32)


def _speed(clip: np.ndarray) -> float:
  """Pixels a frame of what moves fastest in a clip [F, H, W, 3]."""
  flow = _flow()
  luma = np.round(clip @ _LUMA).astype(np.uint8)
  fastest = max(1, round(_FASTEST * luma[0].size))
  means = []
  for before, after in itertools.pairwise(luma):
    lengths = np.linalg.norm(flow.calc(before, after, None), axis=-1).ravel()
    means.append(np.partition(lengths, -fastest)[-fastest:].mean())
  return float(np.mean(means))


@functools.cache
def _flow() -> Any:
  cv2 = need("cv2", "motion")
  return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _steadiness(clip: np.ndarray) -> float:
  # |a - b| in uint8 without a wider copy: the difference wraps one way only
  before, after = clip[:-1], clip[1:]
  difference = np.maximum(before, after) - np.minimum(before, after)
  return 1.0 - float(difference.mean(dtype=np.float64)) / 255.0
