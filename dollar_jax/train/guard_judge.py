"""What a guard makes of what it sees: the best student, what has fallen."""

from collections.abc import Mapping

import numpy as np
from flax import struct

from dollar_jax.evaluation.intervals import Estimate
from dollar_jax.losses.reward import weighted_sum
from dollar_jax.rewards.mixture import Mixture
from dollar_jax.train import guard_sets
from dollar_jax.train.reward_config import GuardConfig
from dollar_jax.typing import Params

_CLEAR = 3.0
"""Standard errors that a fall must exceed, beside its bound, to count."""

NEVER = -1
"""The step of what has not happened."""


@struct.dataclass
class GuardState:
  """What is known of the student's true rewards; a part of the checkpoint.

  Columns are the M rewards that are optimised, then the G that are watched;
  NaN stands where a clip has no value.

  Attributes:
    start: float32 [N, M + G], of the clips of the first look.
    sets: float32 [2], Fréchet distance and diversity of that look.
    best: float32 [N], the weighted sum of the optimised ones, in deviations of
      the start, at the look whose mean was best.
    best_step: int32, of that look.
    best_params: the averaged student of that look.
    strikes: int32, looks in a row that something had fallen too far.
    ended: int32, the step at which the guard ended the run.
    culprit: int32, which of the G had fallen; G is the sum of the others, then
      come the sets.
    fall: float32, by how many deviations, or what share.
  """

  start: np.ndarray
  sets: np.ndarray
  best: np.ndarray
  best_step: np.ndarray
  best_params: Params
  strikes: np.ndarray
  ended: np.ndarray
  culprit: np.ndarray
  fall: np.ndarray


class Judge:
  """Compares the clips of a look with those of the first and of the best."""

  def __init__(self, mixture: Mixture, optimised: int, settings: GuardConfig):
    """Takes M + G rewards, of which the first M are optimised, and bounds."""
    self._mixture, self._optimised = mixture, optimised
    self._settings = settings

  def __call__(
    self,
    known: GuardState,
    values: np.ndarray,
    step: int,
    sets: Mapping[str, Estimate] | None = None,
  ) -> tuple[GuardState, dict[str, float]]:
    """Judges a look.

    Args:
      known: before it, without the parameters.
      values: [N, M + G], of the clips; NaN where there is none.
      step: updates of the student.
      sets: what all clips are together, see `guard_sets.measure`, if that is
        watched.

    Returns:
      What is known then, and metrics, see `Guard.look`.
    """
    settings, first, sets = self._settings, known.best_step == NEVER, sets or {}
    count = self._optimised
    weights = np.array(self._mixture.weights, np.float32)
    start = values if first else known.start
    deviation = _deviation(start)
    z = (values - np.nanmean(start, axis=0)) / deviation
    total = np.zeros(len(z))  # of votes, which nothing new has
    if count:
      total = np.asarray(weighted_sum(z[:, :count], weights[:count]))
    means = np.nanmean(values, axis=0)
    means = dict(zip(self._mixture.names, means, strict=True))
    means["sum"] = np.nanmean(total)
    means |= {name: estimate.value for name, estimate in sets.items()}
    metrics = {f"guard/{name}": float(mean) for name, mean in means.items()}
    if first:
      at = np.int32(step)
      known = known.replace(
        start=start,
        sets=np.array([means.get(n, 0) for n in guard_sets.SETS], np.float32),
        best=total,
        best_step=at,
      )
      return known, metrics | self._limits(known)
    metrics |= self._limits(known)

    # of the watched ones, then of the sum of the optimised ones
    worse = np.sign(weights) * (start - values) / deviation
    falls = np.append(_mean(worse)[count:], _mean(known.best - total))
    limits = np.full(len(falls), settings.watch_fall)
    limits[-1] = settings.reward_fall
    before = dict(zip(guard_sets.SETS, known.sets, strict=True))
    for name, estimate in sets.items():
      fall = guard_sets.fall(name, float(before[name]), estimate)
      falls = np.append(falls, fall)
      limits = np.append(limits, self._share(name))
    excess = falls - limits
    strikes = known.strikes + 1 if (excess > 0).any() else 0
    known = known.replace(strikes=np.int32(strikes))
    if not strikes and np.nanmean(total) >= np.nanmean(known.best):
      known = known.replace(best=total, best_step=np.int32(step))
    if strikes >= settings.patience:
      worst = int(np.argmax(excess))
      known = known.replace(
        ended=np.int32(step),
        culprit=np.int32(worst),
        fall=np.float32(falls[worst]),
      )
    return known, metrics

  def _share(self, name: str) -> float:
    """By what share one of `SETS` may be worse than at the start."""
    settings = self._settings
    allowed = settings.frechet_rise, settings.diversity_fall
    return dict(zip(guard_sets.SETS, allowed, strict=True))[name]

  def _limits(self, known: GuardState) -> dict[str, float]:
    """Where everything has fallen too far, in the units it is logged in."""
    settings, count = self._settings, self._optimised
    mean, deviation = np.nanmean(known.start, axis=0), _deviation(known.start)
    signs = np.sign(self._mixture.weights)
    low = mean - signs * settings.watch_fall * deviation
    names = self._mixture.names[count:]
    found = dict(zip(names, low[count:], strict=True))
    best = np.nanmean(known.best)
    found["sum"] = best - settings.reward_fall
    if count == 1:
      name, turned = self._mixture.names[0], signs[0] * deviation[0]
      found[name] = mean[0] + turned * found["sum"]
    if settings.features:
      rise, less = (
        before * (1 + turn * self._share(name))
        for name, before, turn in zip(
          guard_sets.SETS, known.sets, (1, -1), strict=True
        )
      )
      found |= dict(zip(guard_sets.SETS, (rise, less), strict=True))
    return {f"guard_limit/{name}": float(x) for name, x in found.items()}

  def told(self, known: GuardState) -> str | None:
    """Why the run is to end, and which student is kept; None: it goes on."""
    if known.ended == NEVER:
      return None
    watched = self._mixture.names[self._optimised :]
    fell, settings = f"{known.fall:.2g} deviations", self._settings
    if known.culprit > len(watched):
      name = guard_sets.SETS[known.culprit - len(watched) - 1]
      what, setting = {
        "frechet": ("the Fréchet distance was {:.0%} above", "frechet_rise"),
        "diversity": ("the diversity was {:.0%} below", "diversity_fall"),
      }[name]
      what = f"{what.format(known.fall)} the start's"
      bound = f"config.guard.{setting} is {self._share(name):g}"
    elif known.culprit < len(watched):
      what = f"{watched[known.culprit]} was {fell} worse than at the start"
      bound = f"config.guard.watch_fall is {settings.watch_fall:g}"
    else:
      what = f"the true reward was {fell} below its best"
      bound = f"config.guard.reward_fall is {settings.reward_fall:g}"
    return (
      f"the guard stopped the run at step {known.ended}: {what} ({bound}); the "
      f"student of step {known.best_step} is kept"
    )


def _deviation(values: np.ndarray) -> np.ndarray:
  """Standard deviation [M] of values [N, M], above 0."""
  floor = 1e-5 * np.abs(np.nanmean(values, axis=0))  # what may be rounding
  return np.maximum(np.nanstd(values, axis=0), np.maximum(floor, 1e-12))


def _mean(falls: np.ndarray) -> np.ndarray:
  """Mean over clips [N, ...]; 0 where that may be chance."""
  number = np.maximum(np.isfinite(falls).sum(axis=0), 1)
  mean = np.nanmean(falls, axis=0)
  error = np.nanstd(falls, axis=0) / np.sqrt(number)
  return np.where(np.abs(mean) > _CLEAR * error, mean, 0.0)
