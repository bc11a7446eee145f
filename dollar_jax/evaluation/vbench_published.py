"""VBench results that others have published, to read one's own beside."""

from typing import NamedTuple

DIMENSIONS = {
  "subject consistency": (83.99, 93.77),
  "background consistency": (93.78, 96.80),
  "temporal flickering": (96.42, 96.30),
  "motion smoothness": (98.09, 97.76),
  "dynamic degree": (99.44, 75.83),
  "aesthetic quality": (61.21, 63.80),
  "imaging quality": (63.87, 69.40),
  "object class": (85.79, 91.63),
  "multiple objects": (52.59, 69.71),
  "human action": (99.60, 99.00),
  "color": (77.00, 77.95),
  "spatial relationship": (51.40, 68.56),
  "scene": (49.99, 55.06),
  "appearance style": (24.83, 24.45),
  "temporal style": (26.45, 24.64),
  "overall consistency": (27.89, 26.93),
}
"""In per cent: DOLLAR's teacher, 50 steps, and its student of 4 steps tuned to
PickScore (arXiv 2412.15689)."""


class Published(NamedTuple):
  """Somebody's result, in per cent.

  Attributes:
    model: whose.
    quality: VBench's quality score; None where it is not told.
    semantic: its semantic score; None where it is not told.
    total: its total.
    source: where it stands.
  """

  model: str
  quality: float | None
  semantic: float | None
  total: float
  source: str


_PAPER = "arXiv 2412.15689"
_FASTGEN = "NVlabs/FastGen, README of distribution_matching"

RESULTS = (
  Published("DOLLAR's teacher, 50 steps", 81.89, 73.71, 80.25, _PAPER),
  Published("DOLLAR, PickScore, 4 steps", 83.49, 77.90, 82.37, _PAPER),
  Published("DOLLAR, HPSv2, 4 steps", None, None, 82.57, _PAPER),
  Published("Wan 2.1 by DMD2, 2 steps", 85.69, 79.92, 84.53, _FASTGEN),
  Published("Wan 2.1 by DMD2, 4 steps", 85.86, 80.15, 84.72, _FASTGEN),
  Published("Wan 2.1 by Self-Forcing, 4 steps", 85.31, 80.14, 84.27, _FASTGEN),
)
"""Models and lengths of clips differ: a table to find one's place in."""
