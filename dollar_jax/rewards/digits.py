"""Rewards that read the captions of the embedded digits model."""

import functools

import numpy as np

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import tracking
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.rewards.base import register


@register("caption_side", kind="image", prompted=True)
def caption_side(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Pixels that the digit is off the middle, to the side its caption names.

  "a 3 moving left" wants it on the left: a frame counts by the place of the
  light in it (`tracking.track`), and for nothing where there is none.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: B captions of the digits model.

  Returns:
    float32 [B], mean over frames; below 0 on the other side.

  Raises:
    ValueError: for another caption.
  """
  asked = [moving_digits.parse_caption(prompt)[1] for prompt in prompts]
  found = tracking.track(tracking.grey(frames))
  middle = (np.array(frames.shape[2:4]) - 1) / 2
  off = (found.centres - middle) * found.visible[..., None]
  way = moving_digits.COMPASS[asked]
  return np.einsum("bfi,bi->b", off, way).astype(np.float32) / frames.shape[1]


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
