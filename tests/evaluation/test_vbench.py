"""VBench's scores against the table in the paper."""

import pytest

from dollar_jax.evaluation import vbench

# arXiv 2412.15689: teacher, and student tuned on PickScore, in per cent
PAPER = {
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
  "temporal style": (26.45, 24.64),
  "appearance style": (24.83, 24.45),
  "overall consistency": (27.89, 26.93),
}
TEACHER, STUDENT = (
  {name: row[i] for name, row in PAPER.items()} for i in (0, 1)
)


@pytest.mark.parametrize(
  "results, expected",
  [(TEACHER, (81.89, 73.71, 80.25)), (STUDENT, (83.49, 77.90, 82.37))],
)
def test_papers_table(results, expected):
  found = vbench.scores(results)
  assert list(found) == ["quality", "semantic", "total"]
  assert tuple(found.values()) == pytest.approx(expected, abs=0.01)


def test_fractions_and_other_spellings_give_the_same():
  spelled = {
    name.title().replace(" ", "_"): value / 100
    for name, value in reversed(TEACHER.items())
  }
  assert vbench.scores(spelled) == pytest.approx(vbench.scores(TEACHER))


@pytest.mark.parametrize("end, expected", [(0, 0), (1, 100)])
def test_the_ends_of_the_published_ranges(end, expected):
  results = {name: ends[end] for name, ends in vbench.RANGES.items()}
  found = vbench.scores(results)
  assert tuple(found.values()) == pytest.approx((expected,) * 3)
  # as published, since the paper's table does not tell 0.0009 from 0
  assert vbench.RANGES["appearance style"] == (0.0009, 0.2855)


def test_all_faults_are_named_at_once():
  results = {
    **TEACHER,
    "Subject_Consistency": 80.0,
    "charm": 3.0,
    "color": 177.0,
    "imaging quality": float("nan"),
    "human action": 0.996,
  }
  del results["scene"], results["object class"]
  with pytest.raises(ValueError) as error:
    vbench.scores(results)
  for fault in (
    "missing: object class, scene",
    "'charm' is not a dimension",
    "subject consistency is given twice",
    "color is 177.0, not within [0, 100]",
    "imaging quality is nan",
    "human action is 0.996 among values in per cent",
  ):
    assert fault in str(error.value)


def test_nothing_at_all_is_refused():
  with pytest.raises(ValueError, match="missing: subject consistency"):
    vbench.scores({})
