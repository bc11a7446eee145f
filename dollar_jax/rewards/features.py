"""Features of clips, by name, in which sets of clips are compared.

A feature extractor takes frames uint8 [B, F, H, W, 3] and gives numbers
[B, D]. "digits" is that of the embedded judge; any other is named
"MODULE:FUNCTION", such as an I3D or VideoMAE whose weights the user has.
"""

from collections.abc import Callable

import numpy as np

from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.rewards.base import import_function

FeatureFn = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [B, F, H, W, 3] → features float32 [B, D]."""

DIGITS = "digits"


def get_features(name: str) -> FeatureFn:
  """Finds a feature extractor.

  Args:
    name: "digits", or "MODULE:FUNCTION".

  Returns:
    A function that checks what it returns: it raises a ValueError unless that
    is finite and [B, D].

  Raises:
    ValueError: if there is no such extractor, or its module does not import.
  """
  if name == DIGITS:
    return ClipJudge.load(EMBEDDED).features
  if ":" not in name:
    raise ValueError(
      f"feature extractor {name!r} is unknown; give {DIGITS!r}, or "
      "MODULE:FUNCTION for one of your own"
    )
  fn = import_function(name, "feature extractor")

  def features(frames: np.ndarray) -> np.ndarray:
    found = np.asarray(fn(frames), np.float32)
    if found.ndim != 2 or len(found) != len(frames):
      raise ValueError(
        f"feature extractor {name!r} gave shape {found.shape} for "
        f"{len(frames)} clips; it must give [B, D]"
      )
    if not np.isfinite(found).all():
      raise ValueError(
        f"feature extractor {name!r} gave numbers that are not finite; check "
        "it, and the clips"
      )
    return found

  return features
