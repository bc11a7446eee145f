"""VBench's quality, semantic and total score from its 16 dimensions.

Every dimension is scaled by the lowest and highest value that VBench's authors
publish for it, then averaged (Huang et al., arXiv 2311.17982; constants of
`scripts/constant.py` at github.com/Vchitect/VBench). Scaled values may leave
[0, 1], as they do there.
"""

import math
from collections.abc import Mapping

RANGES = {
  "subject consistency": (0.1462, 1.0),
  "background consistency": (0.2615, 1.0),
  "temporal flickering": (0.6293, 1.0),
  "motion smoothness": (0.706, 0.9975),
  "dynamic degree": (0.0, 1.0),
  "aesthetic quality": (0.0, 1.0),
  "imaging quality": (0.0, 1.0),
  "object class": (0.0, 1.0),
  "multiple objects": (0.0, 1.0),
  "human action": (0.0, 1.0),
  "color": (0.0, 1.0),
  "spatial relationship": (0.0, 1.0),
  "scene": (0.0, 0.8222),
  "appearance style": (0.0009, 0.2855),
  "temporal style": (0.0, 0.364),
  "overall consistency": (0.0, 0.364),
}
"""Dimension → (lowest, highest) published value, as fractions."""

QUALITY = tuple(RANGES)[:7]
SEMANTIC = tuple(RANGES)[7:]

_WEIGHTS = {"dynamic degree": 0.5}  # all others weigh 1
_QUALITY_WEIGHT = 4
_SEMANTIC_WEIGHT = 1


def scores(results: Mapping[str, float]) -> dict[str, float]:
  """Returns VBench's three summary scores, in per cent.

  Args:
    results: the 16 dimensions, either all in per cent or all as fractions;
      a value above 1 tells which. Names may have "_" for a space and capitals.

  Returns:
    {"quality", "semantic", "total"}.

  Raises:
    ValueError: naming every dimension that is missing, unknown, given twice,
      out of range, or in another unit than the rest.
  """
  named: dict[str, float] = {}
  faults = []
  for name, value in results.items():
    key = plain_name(name)
    if key not in RANGES:
      faults.append(f"{name!r} is not a dimension of VBench")
    elif key in named:
      faults.append(f"{key} is given twice")
    else:
      named[key] = float(value)
  missing = [key for key in RANGES if key not in named]
  if missing:
    faults.append(f"missing: {', '.join(missing)}")

  unit = 100.0 if any(value > 1 for value in named.values()) else 1.0
  for key, value in named.items():
    if not (math.isfinite(value) and 0 <= value <= unit):
      faults.append(f"{key} is {value}, not within [0, {unit:g}]")
    elif unit == 100 and 0 < value < 1:
      faults.append(
        f"{key} is {value} among values in per cent (give all as fractions if "
        "it is that low)"
      )
  if faults:
    raise ValueError("VBench results cannot be scored: " + "; ".join(faults))

  scaled = {
    key: (named[key] / unit - low) / (high - low)
    for key, (low, high) in RANGES.items()
  }
  quality = _weighted_mean(scaled, QUALITY)
  semantic = _weighted_mean(scaled, SEMANTIC)
  total = _QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic
  total /= _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
  return {
    "quality": 100 * quality,
    "semantic": 100 * semantic,
    "total": 100 * total,
  }


def plain_name(name: str) -> str:
  """A dimension's name as `RANGES` has it, of "Subject_Consistency"."""
  return " ".join(name.replace("_", " ").lower().split())


def _weighted_mean(scaled: Mapping[str, float], keys: tuple[str, ...]) -> float:
  weights = {key: _WEIGHTS.get(key, 1.0) for key in keys}
  total = sum(weight * scaled[key] for key, weight in weights.items())
  return total / sum(weights.values())
