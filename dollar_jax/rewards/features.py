"""Features of clips, by name, in which sets of clips are compared.

A feature extractor takes frames uint8 [B, F, H, W, 3] and gives numbers
[B, D]. "digits" is that of the embedded judge, "thumbnails" needs no weights
but sees colours and layout only, "videomae:FOLDER" runs a VideoMAE that the
user has, and any other is named "MODULE:FUNCTION".
"""

from collections.abc import Callable

import numpy as np

from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.interop.video_features import VideoMAEFeatures
from dollar_jax.rewards.base import import_function

FeatureFn = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [B, F, H, W, 3] → features float32 [B, D]."""

DIGITS = "digits"
THUMBNAILS = "thumbnails"
_VIDEOMAE = "videomae:"
_GRID = (2, 4, 4)


def get_features(name: str) -> FeatureFn:
  """Finds a feature extractor.

  Args:
    name: "digits", "thumbnails", "videomae:FOLDER", or "MODULE:FUNCTION".

  Returns:
    A function that checks what it returns: it raises a ValueError unless that
    is finite and [B, D].

  Raises:
    ValueError: if there is no such extractor, or its module or its weights
      cannot be read.
  """
  if name == DIGITS:
    return ClipJudge.load(EMBEDDED).features
  if name == THUMBNAILS:
    return thumbnails
  if name.startswith(_VIDEOMAE):
    return VideoMAEFeatures(name.removeprefix(_VIDEOMAE))
  if ":" not in name:
    raise ValueError(
      f"feature extractor {name!r} is unknown; give {DIGITS!r}, "
      f"{THUMBNAILS!r}, '{_VIDEOMAE}FOLDER', or MODULE:FUNCTION for one of "
      "your own"
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


def thumbnails(frames: np.ndarray) -> np.ndarray:
  """Mean colours, 0 to 1, of 2 x 4 x 4 cells of each clip.

  Args:
    frames: uint8 [B, F, H, W, 3] of at least 2 frames of 4x4.

  Returns:
    float32 [B, 96].

  Raises:
    ValueError: if the clips are smaller.
  """
  if any(n < cells for n, cells in zip(frames.shape[1:], _GRID, strict=False)):
    raise ValueError(
      f"clips of shape {frames.shape[1:]} have no thumbnails; they need 2 "
      "frames of 4x4 or more"
    )
  means = frames.astype(np.float32) / 255
  for axis, cells in enumerate(_GRID, start=1):
    parts = np.array_split(means, cells, axis)
    means = np.concatenate(
      [part.mean(axis, keepdims=True) for part in parts], axis
    )
  return means.reshape(len(frames), -1)
