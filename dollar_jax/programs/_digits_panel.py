"""The embedded digits model's judge, beside held-out real clips."""

from typing import Any

import numpy as np

from dollar_jax.data import moving_digits
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.evaluation.scorecard import evaluate_clips

_HELD_OUT = 2000
_HELD_OUT_SEED = 1
_JUDGE_SEED = 1000


def _held_out_clips() -> moving_digits.Clips:
  """2,000 real clips of digit images that no training has seen."""
  return moving_digits.make_clips("test", _HELD_OUT, _HELD_OUT_SEED)


class DigitsPanel:
  """The judge of moving digits with its held-out real clips.

  Attributes:
    judge: the classifier and feature extractor.
    real: 2,000 real clips of digit images that no training has seen.
    reference: their features [2000, D].
  """

  def __init__(self):
    """Loads the judge and looks at the held-out clips."""
    self.judge = ClipJudge.load(EMBEDDED)
    self.real = _held_out_clips()
    self.reference = self.judge.features(self.real.frames)

  def __call__(
    self,
    frames: np.ndarray,
    captions: list[str],
    reference: np.ndarray | None = None,
  ) -> dict[str, Any]:
    """Judges clips.

    Args:
      frames: uint8 [N, 8, 32, 32, 3].
      captions: N captions of the digits model.
      reference: features of real clips; None takes the held-out ones.

    Raises:
      ValueError: for a caption that the digits model does not know.
    """
    labels = np.array([moving_digits.parse_caption(c) for c in captions])
    real = self.reference if reference is None else reference
    return evaluate_clips(self.judge, frames, *labels.T, captions, real)


def fit_judge(folder: str, clips: int = 4000) -> dict[str, float]:
  """Fits the judge anew on real clips of training digits, and saves it.

  Returns:
    Its accuracies on held-out clips of unseen digit images.
  """
  real = moving_digits.make_clips("train", clips, _JUDGE_SEED)
  judge = ClipJudge.fit(real.frames, real.digits, real.directions)
  judge.save(folder)
  held_out = _held_out_clips()
  found = judge.verdict(held_out.frames)
  digit = found.digits == held_out.digits
  direction = found.directions == held_out.directions
  return {
    "digit": float(digit.mean()),
    "direction": float(direction.mean()),
    "caption": float((digit & direction).mean()),
  }
