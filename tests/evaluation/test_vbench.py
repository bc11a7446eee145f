"""VBench's scores against the table in the paper."""

import pytest

from dollar_jax.evaluation import vbench
from dollar_jax.evaluation.vbench_published import DIMENSIONS, RESULTS

TEACHER, STUDENT = (
  {name: row[i] for name, row in DIMENSIONS.items()} for i in (0, 1)
)


@pytest.mark.parametrize(
  "results, expected",
  [(TEACHER, (81.89, 73.71, 80.25)), (STUDENT, (83.49, 77.90, 82.37))],
)
def test_papers_table(results, expected):
  found = vbench.scores(results)
  assert list(found) == ["quality", "semantic", "total"]
  assert tuple(found.values()) == pytest.approx(expected, abs=0.01)


def test_published_totals_are_those_of_their_parts():
  for row in RESULTS:
    if row.quality is not None:
      total = (4 * row.quality + row.semantic) / 5
      assert row.total == pytest.approx(total, abs=0.011), row.model


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
