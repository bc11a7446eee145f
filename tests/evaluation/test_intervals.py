"""Intervals against published values and against repeated draws."""

import numpy as np
import pytest
from scipy import stats

from dollar_jax.evaluation import intervals


def test_wilson_matches_a_published_example():
  # Newcombe (1998), table I: 81 of 263 gives .2553 to .3662
  estimate = intervals.wilson(81, 263)
  np.testing.assert_allclose(estimate, (81 / 263, 0.2553, 0.3662), atol=5e-5)


def test_wilson_keeps_a_width_at_the_ends():
  assert intervals.wilson(0, 50).low == 0
  assert intervals.wilson(0, 50).high > 0.05
  assert intervals.wilson(50, 50).low < 0.95


@pytest.mark.parametrize("successes, count", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(successes, count):
  with pytest.raises(ValueError, match=f"{successes} successes of {count}"):
    intervals.wilson(successes, count)


def test_share_counts_true_values():
  assert intervals.share(np.array([True, False, True, True])).value == 0.75


def test_mean_has_the_interval_of_a_t_test():
  values = np.array([1.0, 2.0, 4.0, 9.0])
  expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
  found = intervals.mean(values, level=0.9)
  np.testing.assert_allclose(found[1:], expected)
  assert found.value == 4.0


def test_mean_stays_within_bounds():
  assert intervals.mean([1.0, 0.9], bounds=(0, 1)).high == 1
  assert intervals.mean([0.5], bounds=(0, 1)) == (0.5, 0, 1)
  assert intervals.mean([0.5]) == (0.5, -np.inf, np.inf)


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_mean_refuses_nothing_and_nan(values):
  with pytest.raises(ValueError, match="all finite"):
    intervals.mean(values)


def test_bootstrap_finds_the_standard_error_of_a_mean():
  values = np.random.default_rng(0).normal(size=400)
  value, low, high = intervals.bootstrap(np.mean, values, resamples=400)
  assert value == values.mean()
  error = (high - low) / 2 / stats.norm.ppf(0.975)
  assert error == pytest.approx(intervals.standard_error(values), rel=0.15)


def test_bootstrap_within_groups_leaves_their_differences_out():
  groups = ["b", "a", "c"] * 5
  values = np.array([5.0, 1.0, 9.0] * 5)
  np.testing.assert_allclose(
    intervals.bootstrap(np.mean, values, groups), (5.0, 5.0, 5.0)
  )
  assert intervals.bootstrap(np.mean, values).low < 4.5


def test_bootstrap_of_two_a_group_is_as_wide_as_repeated_draws_say():
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(200), 2)
  draws = rng.normal(size=(50, 400)) + groups  # groups differ, and are fixed
  spread = np.std([x.mean() for x in draws])
  assert spread == pytest.approx(1 / 20, rel=0.2)
  _, low, high = intervals.bootstrap(np.mean, draws[0], groups, resamples=400)
  error = (high - low) / 2 / stats.norm.ppf(0.975)
  assert error == pytest.approx(1 / 20, rel=0.15)  # uncorrected: .7 of it


def test_bootstrap_refuses_groups_of_one():
  with pytest.raises(ValueError, match="1 of 2 groups have one sample"):
    intervals.bootstrap(np.mean, np.arange(3.0), ["a", "a", "b"])


def test_bootstrap_is_repeatable():
  values = np.arange(20.0)
  first = intervals.bootstrap(np.mean, values, seed=3)
  assert first == intervals.bootstrap(np.mean, values, seed=3)
  assert first != intervals.bootstrap(np.mean, values, seed=4)


def test_level_is_a_probability():
  with pytest.raises(ValueError, match="confidence level is 95"):
    intervals.mean([1.0, 2.0], level=95)
