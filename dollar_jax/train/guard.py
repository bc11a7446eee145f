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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dollar_jax.parallel import rules
from dollar_jax.rewards.features import get_features
from dollar_jax.rewards.mixture import Mixture, get_mixture
from dollar_jax.train import guard_sets
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.guard_judge import NEVER, GuardState, Judge
from dollar_jax.train.labels import LabelledBatch
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.shared_labels import Decoder, SharedLabeller
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Array, Params, PyTree


class Guard:
  """Looks at clips of the averaged student.

  Attributes:
    decoder: makes frames of the clips.
    description: what must be equal for a checkpoint to fit.
    judge: says what the clips of a look mean.
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
    self.judge = Judge(self._mixture, len(optimised.names), config.guard)
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
    now, metrics = self.judge(before, values[:, :columns], step, sets)
    best = state.best_params
    if now.best_step == step:
      best = _copy(averaged)
    self.verdict = self.judge.told(now)
    now = rules.put(now, self._everywhere).replace(best_params=best)
    return now, metrics, labelled

  def _real_features(self, batches: Batches) -> np.ndarray:
    """Features [N, D] of clips of the data set, decoded as samples are."""
    if self._real is None:
      scores = guard_sets.WithFeatures(self._features)
      labeller = SharedLabeller(self.decoder, scores, self._config.reward)
      real, _ = self._score(labeller, batches, 0, lambda b, _: b["latents"])
      labeller.close()
      self._real = np.concatenate([batch.values for batch in real])
    return self._real

  def _label(
    self, sampler: Params, batches: Batches, step: int
  ) -> tuple[list[LabelledBatch], list[str]]:
    """Scored clips of the student, and their prompts."""

    def draw(batch: PyTree, drawn: int) -> Array:
      key = named_key(self._config.seed, "guard", 0, drawn)
      return self._draw(sampler, batch, key)

    return self._score(self._labeller, batches, step, draw)

  def _score(
    self,
    labeller: SharedLabeller,
    batches: Batches,
    step: int,
    draw: Callable[[PyTree, int], Array],
  ) -> tuple[list[LabelledBatch], list[str]]:
    """Scores what `draw` makes of batches and how many clips came before."""
    drawn, asked = 0, []
    while drawn < self._settings.samples:
      batch, prompts = batches.next()
      x0, prompts = draw(batch, drawn), batches.all_prompts(prompts)
      labeller.submit(step, x0, batch["text"], batch["text_mask"], prompts)
      asked += prompts
      drawn += len(x0)
    return labeller.collect(np.inf, self._config.data.batch_size), asked

  def restored(self, state: GuardState) -> None:
    """Goes on from a checkpoint."""
    self.verdict = self.judge.told(
      jax.device_get(state.replace(best_params={}))
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


@jax.jit
def _copy(params: Params) -> Params:
  return jax.tree.map(jnp.copy, params)
