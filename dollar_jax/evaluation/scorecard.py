"""One row of numbers for a set of clips that a model made.

No number alone says that a student is good: accuracy can be had by drawing
one clip over and over, diversity by drawing noise, and the Fréchet distance
mixes both. They are given together, each with its interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar_jax.evaluation import comparison, diversity, frechet, intervals
from dollar_jax.evaluation.judges import NOTHING, ClipJudge


def evaluate_clips(
  judge: ClipJudge,
  frames: np.ndarray,
  digits: np.ndarray,
  directions: np.ndarray,
  captions: Sequence[str],
  reference_features: np.ndarray,
  *,
  level: float = 0.95,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores clips that were made for captions.

  Draw equally many samples of every caption: the interval of the Fréchet
  distance resamples each caption within itself. A row for as many real clips
  says what a perfect generator scores.

  Args:
    judge: the judge.
    frames: uint8 [N, F, H, W, 3].
    digits: int [N], asked for.
    directions: int [N], asked for.
    captions: N captions.
    reference_features: [M, D], `judge.features` of real clips.
    level: probability that every interval is to cover.
    seed: seed of the bootstrap.

  Returns:
    what JSON can hold: "samples", and with an interval [low, high] each
    ("frechet_interval" and so on):
    "frechet"; "caption_accuracy" (digit and direction right),
    "digit_accuracy", "direction_accuracy"; "diversity" and "distinct_shapes"
    (see `diversity`); "one_digit" (share of clips that keep one digit
    throughout) and "frame_agreement" (mean share of a clip's frames that show
    its most frequent digit).

  Raises:
    ValueError: if the arrays do not fit together or to the judge, or no
      caption has two samples.
  """
  verdict, features = judge.verdict(frames), judge.features(frames)
  if not len(frames) == len(digits) == len(directions) == len(captions):
    raise ValueError(
      f"{len(frames)} clips have {len(digits)} digits, {len(directions)} "
      f"directions and {len(captions)} captions; give one for each"
    )
  digit_right = verdict.digits == np.asarray(digits)
  direction_right = verdict.directions == np.asarray(directions)
  one_digit, agreement = diversity.digit_consistency(
    verdict.frame_digits, level
  )
  estimates = {
    "frechet": frechet.frechet_interval(
      features,
      reference_features,
      comparison.even_groups(captions),
      level=level,
      seed=seed,
    ),
    "caption_accuracy": intervals.share(digit_right & direction_right, level),
    "digit_accuracy": intervals.share(digit_right, level),
    "direction_accuracy": intervals.share(direction_right, level),
    "diversity": diversity.diversity(features, captions, level),
    "distinct_shapes": diversity.distinct_shapes(
      verdict.shapes,
      captions,
      judge.shape_threshold,
      verdict.digits != NOTHING,
      level,
    ),
    "one_digit": one_digit,
    "frame_agreement": agreement,
  }
  row: dict[str, Any] = {"samples": len(frames)}
  for name, estimate in estimates.items():
    row |= intervals.entries(name, estimate)
  return row
