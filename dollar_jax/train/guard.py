"""Watches a run that climbs a reward, and ends it before it spoils the student.

A student that climbs a model of a reward finds out, sooner or later, where the
model is wrong; and where the reward is right, it may still pay with something
else. So every now and then the averaged student makes clips, of the same
prompts and noise each time, which are decoded and scored with the true reward
and with rewards that nobody optimises; all together they are set against clips
of the data set. The best student so far is kept. When the true reward has
fallen from its best, or what is watched from its start, further than allowed,
the run ends there, and the best student is its result.
"""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from dollar_jax.evaluation.intervals import Estimate
from dollar_jax.losses.reward import weighted_sum
from dollar_jax.parallel import rules
from dollar_jax.rewards.features import get_features
from dollar_jax.rewards.mixture import Mixture, get_mixture
from dollar_jax.train import guard_sets
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.labels import LabelledBatch
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.shared_labels import Decoder, SharedLabeller
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Params, PyTree

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


class Guard:
  """Looks at clips of the averaged student.

  Attributes:
    decoder: makes frames of the clips.
    description: what must be equal for a checkpoint to fit.
    verdict: why the run is to end, and which student is kept; None: it goes on.
  """

  def __init__(
    self, config: TrainConfig, student: Student, decoder: Decoder, mesh: Mesh
  ):
    """Finds the rewards to watch.

    Args:
      config: the run.
      student: whose samples are looked at.
      decoder: makes frames of them.
      mesh: where they are drawn.

    Raises:
      ValueError: if there is no such reward, or one is optimised and watched.
    """
    self._config, self._settings = config, config.guard
    self.decoder = decoder
    size = config.data.batch_size
    self._count = -(-config.guard.samples // size) * size
    optimised = get_mixture(config.reward.name)
    watched = [get_mixture(name) for name in config.guard.watch]
    self._mixture = _joined(optimised, watched)
    self._optimised = len(optimised.names)
    self._everywhere = rules.replicated(mesh)
    self._draw = jax.jit(student.videos, out_shardings=rules.by_batch(mesh))
    self._features, self._real, scores = None, None, self._mixture
    if name := config.guard.features:
      self._features = get_features(name)
      scores = guard_sets.WithFeatures(self._features, self._mixture)
    self._labeller = SharedLabeller(decoder, scores, config.reward)
    self.description = {
      "rewards": self._mixture.name,
      "features": config.guard.features,
    }
    self.verdict: str | None = None

  def init(self, params: Params) -> GuardState:
    """Nothing seen yet; puts the codec on the devices.

    Args:
      params: of the student, averaged; they are copied.
    """
    self.decoder.init()
    columns = len(self._mixture.names)

    def create(params: Params) -> GuardState:
      never = jnp.full((), NEVER, jnp.int32)
      return GuardState(
        start=jnp.zeros((self._count, columns)),
        sets=jnp.zeros(len(guard_sets.SETS)),
        best=jnp.zeros(self._count),
        best_step=never,
        best_params=jax.tree.map(jnp.copy, params),
        strikes=jnp.zeros((), jnp.int32),
        ended=never,
        culprit=never,
        fall=jnp.zeros(()),
      )

    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    shapes = jax.eval_shape(create, params)
    everywhere = jax.tree.map(lambda _: self._everywhere, shapes)
    return jax.jit(
      create, out_shardings=everywhere.replace(best_params=places)
    )(params)

  def program(self, sampler: Params, batch: PyTree, key: Any) -> Program:
    """What a run compiles for the looks, for placed shapes."""
    return Program(self._draw, (sampler, batch, key))

  def due(self, step: int) -> bool:
    """Whether to look after `step` updates of the student."""
    return step % self._settings.every == 0

  def look(
    self,
    state: GuardState,
    averaged: Params,
    sampler: Params,
    batches: Batches,
    step: int,
  ) -> tuple[GuardState, dict[str, float], list[LabelledBatch]]:
    """Draws clips, scores them, and judges the run.

    Args:
      state: what is known so far.
      averaged: the student, averaged.
      sampler: what its network computes with.
      batches: where prompts come from, the first ones at every look.
      step: updates of the student so far.

    Returns:
      The next state; metrics `guard/NAME` of every reward, of `sets` if they
      are watched, and `guard/sum` of what is optimised, in deviations of the
      start, with `guard_limit/NAME` beyond which each has fallen too far; the
      clips and their labels.
    """
    labelled, prompts = self._label(sampler, batches.from_the_first(), step)
    values = np.concatenate([batch.values for batch in labelled])
    if np.isfinite(values).all(axis=1).sum() < 2:  # nothing to judge by
      return state, {}, labelled
    before = jax.device_get(state.replace(best_params={}))
    columns, sets = len(self._mixture.names), {}
    if self._features:
      real = self._real_features(batches.from_the_first())
      sets = guard_sets.measure(values[:, columns:], prompts, real)
    now, metrics = self._judge(before, values[:, :columns], step, sets)
    best = state.best_params
    if now.best_step == step:
      best = _copy(averaged)
    self.verdict = self._told(now)
    now = rules.put(now, self._everywhere).replace(best_params=best)
    return now, metrics, labelled

  def _judge(
    self,
    known: GuardState,
    values: np.ndarray,
    step: int,
    sets: Mapping[str, Estimate] = types.MappingProxyType({}),
  ) -> tuple[GuardState, dict[str, float]]:
    """The next state, from values [N, M + G] of the clips, and metrics."""
    settings, first = self._settings, known.best_step == NEVER
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
    if self._features:
      rise, less = (
        before * (1 + turn * self._share(name))
        for name, before, turn in zip(
          guard_sets.SETS, known.sets, (1, -1), strict=True
        )
      )
      found |= dict(zip(guard_sets.SETS, (rise, less), strict=True))
    return {f"guard_limit/{name}": float(x) for name, x in found.items()}

  def _real_features(self, batches: Batches) -> np.ndarray:
    """Features [N, D] of clips of the data set, decoded as samples are."""
    if self._real is None:
      drawn, size = 0, self._config.data.batch_size
      scores = guard_sets.WithFeatures(self._features)
      labeller = SharedLabeller(self.decoder, scores, self._config.reward)
      while drawn < self._settings.samples:
        batch, prompts = batches.next()
        x0 = batch["latents"]
        text = batch["text"], batch["text_mask"]
        labeller.submit(0, x0, *text, batches.all_prompts(prompts))
        drawn += len(x0)
      found = labeller.collect(np.inf, size)
      labeller.close()
      self._real = np.concatenate([batch.values for batch in found])
    return self._real

  def _label(
    self, sampler: Params, batches: Batches, step: int
  ) -> tuple[list[LabelledBatch], list[str]]:
    """Scored clips, and their prompts."""
    drawn, size, asked = 0, self._config.data.batch_size, []
    while drawn < self._settings.samples:
      batch, prompts = batches.next()
      key = named_key(self._config.seed, "guard", 0, drawn)
      x0 = self._draw(sampler, batch, key)
      prompts = batches.all_prompts(prompts)
      text = batch["text"], batch["text_mask"]
      self._labeller.submit(step, x0, *text, prompts)
      asked += prompts
      drawn += len(x0)
    return self._labeller.collect(np.inf, size), asked

  def restored(self, state: GuardState) -> None:
    """Goes on from a checkpoint."""
    self.verdict = self._told(jax.device_get(state.replace(best_params={})))

  def _told(self, known: GuardState) -> str | None:
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

  def close(self) -> None:
    """Ends the labelling."""
    self._labeller.close()


def _joined(optimised: Mixture, watched: list[Mixture]) -> Mixture:
  """One mixture, what is optimised first.

  Raises:
    ValueError: if a reward comes twice, or what is watched is a sum.
  """
  rewards, weights = optimised.rewards, optimised.weights
  for mixture in watched:
    if len(mixture.rewards) > 1 or abs(mixture.weights[0]) != 1:
      raise ValueError(
        f"config.guard.watch has {mixture.name!r}; it takes single rewards, "
        "such as 'sharpness', or '-motion' where less is better"
      )
    if mixture.names[0] in [reward.name for reward in rewards]:
      raise ValueError(
        f"config.guard.watch has {mixture.name!r}, which is optimised or comes "
        "twice; watch others"
      )
    rewards, weights = rewards + mixture.rewards, weights + mixture.weights
  name = " | ".join([optimised.name, *(mixture.name for mixture in watched)])
  return Mixture(name, rewards, weights)


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


@jax.jit
def _copy(params: Params) -> Params:
  return jax.tree.map(jnp.copy, params)
