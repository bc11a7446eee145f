"""Estimates with the uncertainty that sampling a finite number leaves."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
  """A number with its confidence interval.

  Attributes:
    value: the estimate.
    low: lower end; may be -inf where there is one observation only.
    high: upper end.
  """

  value: float
  low: float
  high: float


def entries(name: str, estimate: Estimate) -> dict[str, Any]:
  """An estimate as JSON can hold it: `name`, and `name_interval` [low, high].

  An end that is not finite is None.
  """
  value, *ends = estimate
  finite = [end if np.isfinite(end) else None for end in ends]
  return {name: value, f"{name}_interval": finite}


def wilson(successes: int, count: int, level: float = 0.95) -> Estimate:
  """The share `successes / count` with Wilson's score interval.

  Unlike the normal interval it stays within [0, 1] and keeps a width at 0 %
  and 100 % (Wilson, 1927).

  Raises:
    ValueError: if count is below 1 or successes is not within [0, count].
  """
  if count < 1 or not 0 <= successes <= count:
    raise ValueError(
      f"{successes} successes of {count} make no share; give 0 <= successes "
      "<= count and count >= 1"
    )
  test = stats.binomtest(int(successes), int(count))
  low, high = test.proportion_ci(_checked(level), method="wilson")
  return Estimate(successes / count, float(low), float(high))


def share(true: np.ndarray, level: float = 0.95) -> Estimate:
  """Share of true values in a bool array [N], with Wilson's interval."""
  return wilson(int(np.sum(true)), np.size(true), level)


def mean(
  values: np.ndarray,
  level: float = 0.95,
  bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
  """Mean of independent values [N] with Student's t interval.

  Args:
    values: [N].
    level: probability that the interval is to cover.
    bounds: what the mean cannot leave; the interval is cut there.

  Raises:
    ValueError: if there is no value, or one is not finite.
  """
  values = np.asarray(values, np.float64)
  if values.size < 1 or not np.isfinite(values).all():
    raise ValueError(
      f"a mean of {values.size} values needs at least one, and all finite"
    )
  value = float(values.mean())
  if values.size == 1:
    return Estimate(value, *bounds)
  reach = stats.t.ppf((1 + _checked(level)) / 2, values.size - 1)
  half = float(reach * standard_error(values))
  low, high = np.clip([value - half, value + half], *bounds)
  return Estimate(value, float(low), float(high))


def standard_error(values: np.ndarray) -> float:
  """Standard error of the mean of independent values [N], N >= 2."""
  return float(np.std(values, ddof=1) / np.sqrt(np.size(values)))


def bootstrap(
  statistic: Callable[[np.ndarray], float],
  samples: np.ndarray,
  groups: Sequence[str] | None = None,
  *,
  level: float = 0.95,
  resamples: int = 100,
  seed: int = 0,
) -> Estimate:
  """`statistic(samples)` with the normal interval of its bootstrap error.

  Only the spread over resamples is used, not their quantiles: repeating rows
  biases a Fréchet distance upwards, and quantiles would carry that bias.

  Args:
    statistic: function of an array like `samples`.
    samples: [N, ...], resampled along the first axis.
    groups: N labels; each group is resampled within itself, as a design with
      a fixed number of samples a caption is drawn. Every group needs two.
    level: probability that the interval is to cover.
    resamples: number of resamples.
    seed: seed of the resampling.

  Raises:
    ValueError: if a group has one sample, whose spread nothing tells.
  """
  rng = np.random.default_rng(seed)
  names = np.zeros(len(samples)) if groups is None else np.asarray(groups)
  _, label, sizes = np.unique(names, return_inverse=True, return_counts=True)
  if sizes.min() < 2:
    raise ValueError(
      f"{(sizes < 2).sum()} of {len(sizes)} groups have one sample; give two "
      "or more of each"
    )
  order = np.argsort(label, kind="stable")
  start = (np.cumsum(sizes) - sizes)[label[order]]
  draws = [
    statistic(samples[order[start + rng.integers(0, sizes[label[order]])]])
    for _ in range(resamples)
  ]
  # n samples that are resampled vary as n of n - 1 independent ones do
  unbiased = np.sqrt(len(samples) / (len(samples) - len(sizes)))
  reach = stats.norm.ppf((1 + _checked(level)) / 2)
  half = float(reach * unbiased * np.std(draws, ddof=1))
  value = float(statistic(samples))
  return Estimate(value, value - half, value + half)


def _checked(level: float) -> float:
  if not 0 < level < 1:
    raise ValueError(f"confidence level is {level}; it must lie within (0, 1)")
  return level
