"""Rewards that read the captions of the embedded digits model."""

import functools

import numpy as np

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import tracking
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.rewards.base import register


@register("caption_motion", kind="video", prompted=True)
def caption_motion(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Pixels a frame that the digit goes the way its caption says.

  The mean step before the first bounce (`tracking.first_motion`), along the
  caption's direction: 2 in real clips, below 0 the other way.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: B captions of the digits model.

  Returns:
    float32 [B].

  Raises:
    ValueError: for another caption.
  """
  asked = [moving_digits.parse_caption(prompt)[1] for prompt in prompts]
  found = tracking.track(tracking.grey(frames))
  steps = tracking.first_motion(found)
  return np.sum(steps * moving_digits.COMPASS[asked], axis=1, dtype=np.float32)


@register("caption_accuracy", kind="video", prompted=True)
def caption_accuracy(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """1 where the embedded judge sees the caption's digit go its way, else 0.

  Args:
    frames: uint8 [B, 8, 32, 32, 3].
    prompts: B captions of the digits model.

  Returns:
    float32 [B].

  Raises:
    ValueError: for another caption, or clips of another size.
  """
  asked = np.array([moving_digits.parse_caption(prompt) for prompt in prompts])
  seen = _judge().verdict(frames)
  found = np.stack([seen.digits, seen.directions], axis=1)
  return np.all(found == asked, axis=1).astype(np.float32)


@functools.cache
def _judge() -> ClipJudge:
  return ClipJudge.load(EMBEDDED)
