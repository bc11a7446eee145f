"""A set of clips beside real ones, in the features of one extractor.

A finite number of samples biases the Fréchet distance upwards, so that it
stands beside what two sets of real clips of these sizes would score (the
floor), and beside what it would be without end (extrapolated). Where there are
too few samples for one of them, the reason stands instead of a number.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar_jax.evaluation import diversity, frechet, intervals


def compare(
  features: np.ndarray,
  captions: Sequence[str],
  reference: np.ndarray | None = None,
  reference_captions: Sequence[str] | None = None,
  *,
  level: float = 0.95,
  seed: int = 0,
) -> dict[str, Any]:
  """Compares clips with real ones, and with each other.

  Args:
    features: [N, D] of the clips.
    captions: N captions.
    reference: [M, D] of real clips; None leaves out what needs them.
    reference_captions: M captions.
    level: probability that every interval is to cover.
    seed: seed of the resampling.

  Returns:
    What JSON can hold: "samples" and "reference_samples"; "diversity",
    "frechet" and "frechet_extrapolated", each with its interval
    ("frechet_interval" and so on); "frechet_floor"; and "left_out", the reason
    for each that is None.

  Raises:
    ValueError: if features are not finite, or the widths D differ.
  """
  row: dict[str, Any] = {"samples": len(features)}
  left_out: dict[str, str] = {}

  def omit(name: str, reason: str) -> None:
    row[name], left_out[name] = None, reason

  if len(set(captions)) < len(captions):
    found = diversity.diversity(features, captions, level)
    row |= intervals.entries("diversity", found)
  else:
    omit("diversity", "no prompt has two clips")
  if reference is None:
    for name in ("frechet", "frechet_extrapolated", "frechet_floor"):
      omit(name, "there are no real clips to compare with")
    return row | {"left_out": left_out}

  count, real = len(features), len(reference)
  row["reference_samples"] = real
  groups, real_groups = even_groups(captions), None
  if groups is not None and reference_captions is not None:
    real_groups = even_groups(reference_captions)
  if min(count, real) < 2:
    omit("frechet", "one clip has no covariance")
  else:
    found = frechet.frechet_interval(
      features, reference, groups, level=level, seed=seed
    )
    row |= intervals.entries("frechet", found)
  needed = 2 * features.shape[1]
  if min(count, real) < needed:
    omit(
      "frechet_extrapolated",
      f"it needs {needed} clips of each kind; there are {count} and {real}",
    )
  else:
    found = frechet.frechet_extrapolated_interval(
      features, reference, groups, real_groups, level=level, seed=seed
    )
    row |= intervals.entries("frechet_extrapolated", found)
  if not 2 <= count <= real // 2:
    omit(
      "frechet_floor",
      f"it needs {2 * max(count, 2)} real clips; there are {real}",
    )
  else:
    row["frechet_floor"] = frechet.frechet_floor(
      reference, count, real_groups, seed=seed
    )
  return row | {"left_out": left_out}


def even_groups(captions: Sequence[str]) -> Sequence[str] | None:
  """The captions, if each has two samples or more to be resampled."""
  return captions if min(Counter(captions).values()) > 1 else None
