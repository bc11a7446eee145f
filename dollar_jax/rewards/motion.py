"""Rewards that look at how frames follow each other."""

import numpy as np

from dollar_jax.rewards.base import register


@register("temporal_flickering", kind="video")
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


def _steadiness(clip: np.ndarray) -> float:
  # |a - b| in uint8 without a wider copy: the difference wraps one way only
  before, after = clip[:-1], clip[1:]
  difference = np.maximum(before, after) - np.minimum(before, after)
  return 1.0 - float(difference.mean(dtype=np.float64)) / 255.0
