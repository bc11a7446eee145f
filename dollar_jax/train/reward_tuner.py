"""The latent reward model beside the student: labels, replay, refreshes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dollar_jax.losses.reward import RewardStatistics, weighted_sum
from dollar_jax.parallel import rules
from dollar_jax.rewards.mixture import get_mixture
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.labels import LabelCounts, LabelledBatch, spearman
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.replay import LabelBuffer
from dollar_jax.train.reward_network import RewardNetwork, RewardState
from dollar_jax.train.reward_step import make_reward_step
from dollar_jax.train.shared_labels import Decoder, SharedLabeller
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Params, PyTree

PAIRS = 512
"""Of estimates and true rewards that are kept, for the calibration plot."""


class RewardTuner:
  """Labels the student's samples and keeps the latent reward model fresh.

  Attributes:
    model: the Linen module, its kind taken from the reward.
    description: what must be equal for a checkpoint to fit.
    shapes: of the model's state, placed.
    decoder: makes frames of samples.
    pairs: float32 [PAIRS, 2], the last estimates, of samples that the model
      had not seen, and their true rewards; NaN where there are not yet so many.
  """

  def __init__(
    self,
    config: TrainConfig,
    student: Student,
    decoder: Decoder,
    latent_shape: tuple[int, ...],
    text_shape: tuple[int, int],
    mesh: Mesh,
  ):
    """Finds the reward and starts its labeller.

    Args:
      config: the run.
      student: whose samples are labelled.
      decoder: makes frames of what is labelled.
      latent_shape: T, H, W, C.
      text_shape: S, D.
      mesh: where it is trained.

    Raises:
      ValueError: if there is no such reward.
    """
    self._config, settings = config, config.reward
    self._rewards = rewards = get_mixture(settings.name)
    self._weights = np.array(rewards.weights, np.float32)
    self._student = student
    self._draw = jax.jit(student.samples, out_shardings=rules.by_batch(mesh))
    self._everywhere = rules.replicated(mesh)
    self._by_batch = rules.by_batch(mesh)
    self.decoder, self._size = decoder, config.data.batch_size
    self._warmup = settings.real_steps + settings.warmup_steps
    updates = self._warmup + config.steps * settings.steps
    self._network = RewardNetwork(
      config,
      rewards.kind,
      rewards.uses_text,
      make_reward_step,
      updates,
      latent_shape,
      text_shape,
      mesh,
    )
    self.model, self.shapes = self._network.model, self._network.shapes
    self.description = {
      "name": settings.name,
      "capacity": settings.capacity,
      "model": self._network.description,
    }
    inline = settings.labelling == "inline" or (
      settings.labelling == "auto" and decoder.on_cpu
    )
    self._labeller = SharedLabeller(
      decoder, rewards, settings, workers=0 if inline else settings.workers
    )
    text = text_shape if rewards.uses_text else None
    self._unjudged: list[LabelledBatch] = []
    self.pairs = np.full((PAIRS, 2), np.nan, np.float32)
    self._buffer = LabelBuffer(
      settings.capacity,
      latent_shape,
      text,
      len(rewards.rewards),
      config.seed,
    )

  def init(self) -> RewardState:
    """A fresh latent reward model; puts the codec on the devices, too."""
    self.decoder.init()
    return self._network.init(len(self._rewards.rewards))

  def programs(
    self, sampler: Params, batch: PyTree, key: Any
  ) -> dict[str, Program]:
    """What a run compiles for the reward, by name.

    Args:
      sampler: shapes of what the student samples with.
      batch: shapes of a training batch, placed.
      key: of a random key.
    """
    x0 = rules.placed(batch["latents"], self._by_batch, np.float32)
    return {
      "sampler": Program(self._draw, (sampler, batch, key)),
      "decode": self.decoder.program(x0),
      "reward": self._network.program(
        key, latents=batch["latents"].shape[1:], rewards=()
      ),
    }

  def warm_up(
    self, state: RewardState, params: Params, batches: Batches
  ) -> tuple[RewardState, dict[str, Any]]:
    """Fits the model to real samples, if asked to, then to the student's."""
    settings = self._config.reward
    if settings.real_labels:
      real = self._label_real(batches, settings.real_labels)
      self._keep(real)
      state = self._measure(state, real)
      state, _ = self._fit(state, settings.real_steps, 0)
      # from here on a deviation is one of the student's
      statistics = RewardStatistics.create(state.statistics.mean.shape)
      state = state.replace(statistics=rules.put(statistics, self._everywhere))
    count = settings.warmup_labels
    labelled = self._label("warmup", params, batches, count, 0)
    self._keep(labelled)
    state = self._measure(state, labelled)
    return self._fit(state, settings.warmup_steps, settings.real_steps)

  def _measure(
    self, state: RewardState, labelled: list[LabelledBatch]
  ) -> RewardState:
    statistics = state.statistics
    for batch in labelled:
      statistics = statistics.update(batch.values, batch.valid)
    return state.replace(statistics=rules.put(statistics, self._everywhere))

  def refresh(
    self, state: RewardState, params: Params, batches: Batches, step: int
  ) -> tuple[RewardState, dict[str, Any]]:
    """Labels fresh samples, tells how well the model knew them, fits it.

    Returns:
      The next state and metrics: `true_reward` and `lrm_reward`, the model's
      estimate (of one reward in its own unit, of a sum in standard deviations,
      with a `true_reward/NAME` for each); on samples that it had not seen
      `lrm_spearman` and `lrm_disagreement` (the members' deviation, in those
      of the reward); `label_age` in updates, `label_failures` and
      `label_retries` so far.
    """
    settings = self._config.reward
    count, until = settings.labels, step - settings.max_age
    labelled = self._label("labels", params, batches, count, step, until)
    metrics = self._judge(state, self._unjudged + labelled, step)
    self._unjudged = []
    # or the reward gave nothing to warm up with
    if settings.running or not self._buffer.count:
      state = self._measure(state, labelled)
    self._keep(labelled)
    index = self._warmup + step * settings.steps
    state, more = self._fit(state, settings.steps, index)
    return state, {**metrics, **more}

  def _label(
    self,
    name: str,
    params: Params,
    batches: Batches,
    count: int,
    step: int,
    until: float = math.inf,
  ) -> list[LabelledBatch]:
    """Has `count` fresh samples labelled; returns what is ready by now."""
    drawn = 0
    while drawn < count:
      batch, prompts = batches.next()
      key = named_key(self._config.seed, name, step, drawn)
      x0, text, mask = self._draw(params, batch, key)
      prompts = batches.all_prompts(prompts)
      chosen = [prompts[i] for i in self._student.prompt_rows(len(x0))]
      self._labeller.submit(step, x0, text, mask, chosen)
      drawn += len(x0)
    return self._labeller.collect(until, self._size)

  def _label_real(self, batches: Batches, count: int) -> list[LabelledBatch]:
    """Labels samples of the data set."""
    drawn = 0
    while drawn < count:
      batch, prompts = batches.next()
      prompts = batches.all_prompts(prompts)
      x0, text, mask = (batch[k] for k in ("latents", "text", "text_mask"))
      self._labeller.submit(0, x0, text, mask, prompts)
      drawn += len(x0)
    return self._labeller.collect(math.inf, self._size)

  def _keep(self, labelled: list[LabelledBatch]) -> None:
    for batch in labelled:
      self._buffer.add(batch)

  def _judge(
    self, state: RewardState, labelled: list[LabelledBatch], step: int
  ) -> dict[str, Any]:
    metrics: dict[str, Any] = self._labeller.failures()
    labelled = [batch for batch in labelled if batch.valid.any()]
    if not labelled:
      return metrics
    members = self._guesses(state, labelled)
    values = np.concatenate([b.values for b in labelled])
    valid = np.concatenate([b.valid for b in labelled])
    ages = np.concatenate([b.step_submitted for b in labelled])
    guess, true = self._in_unit(members.mean(axis=0), values, state.statistics)
    fresh = np.stack([guess, true], axis=1)[valid]
    self.pairs = np.concatenate([self.pairs, fresh])[-PAIRS:]
    metrics |= {
      "true_reward": float(true[valid].mean()),
      "lrm_reward": float(guess.mean()),
      "lrm_spearman": spearman(guess, true),
      "label_age": float(step - ages.mean()),
    }
    if len(members) > 1:
      metrics["lrm_disagreement"] = float(members.std(axis=0).mean())
    if len(self._rewards.names) > 1:
      means = values[valid].mean(axis=0)
      for name, mean in zip(self._rewards.names, means, strict=True):
        metrics[f"true_reward/{name}"] = float(mean)
    return metrics

  def estimate(
    self, state: RewardState, labelled: list[LabelledBatch]
  ) -> dict[str, float]:
    """What the model makes of clips whose first M values are known.

    Returns:
      `guard/latent`, its mean in the unit of `lrm_reward`, and
      `guard/latent_spearman`; nothing if no clip has its values.
    """
    labelled = [batch for batch in labelled if batch.valid.any()]
    if not labelled:
      return {}
    values = np.concatenate([b.values for b in labelled])
    guess, true = self._in_unit(
      self._guesses(state, labelled).mean(axis=0),
      values[:, : len(self._weights)],
      state.statistics,
    )
    return {
      "guard/latent": float(guess.mean()),
      "guard/latent_spearman": spearman(guess, true),
    }

  def _guesses(
    self, state: RewardState, labelled: list[LabelledBatch]
  ) -> np.ndarray:
    """What each member makes of the latents, [members, N]."""
    rows = ((b.latents, b.text, b.text_mask) for b in labelled)
    return self._network.guesses(state.network.params, rows)

  def _in_unit(
    self, guess: np.ndarray, values: np.ndarray, statistics: RewardStatistics
  ) -> tuple[np.ndarray, np.ndarray]:
    """Guesses [B] and true values [B, M] in the unit they are logged in."""
    statistics = jax.device_get(statistics)
    if len(self._weights) > 1:
      return guess, self._target(statistics, values)
    turned = np.sign(self._weights[0])
    return turned * guess * statistics.std[0] + statistics.mean[0], values[:, 0]

  def _target(
    self, statistics: RewardStatistics, values: np.ndarray
  ) -> np.ndarray:
    """What the model is to give [B], for true values [B, M]."""
    return np.asarray(weighted_sum(statistics.normalise(values), self._weights))

  def _fit(
    self, state: RewardState, steps: int, index: int
  ) -> tuple[RewardState, dict[str, Any]]:
    if not self._buffer.count:
      return state, {}
    network, metrics = state.network, {}
    statistics = jax.device_get(state.statistics)
    for i in range(steps):
      drawn = self._buffer.sample(self._config.reward.batch_size, index + i)
      batch = {
        "latents": drawn.latents,
        "rewards": self._target(statistics, drawn.values),
      }
      if drawn.text is not None:
        batch |= {"text": drawn.text, "text_mask": drawn.text_mask}
      network, metrics = self._network.update(network, batch, index + i)
    return state.replace(network=network), {
      f"lrm_{name}": value for name, value in metrics.items()
    }

  def state_dict(self) -> dict[str, np.ndarray]:
    """What the host holds, as arrays of fixed shape, for the checkpoint.

    Waits for what is being labelled, so that no label is lost or used twice.
    """
    fresh = self._labeller.collect(math.inf, self._size)
    self._unjudged += fresh
    self._keep(fresh)
    counts = dataclasses.asdict(self._labeller.counts)
    return {
      **self._buffer.state_dict(),
      "counts": np.array(list(counts.values()), np.int64),
      "pairs": self.pairs,
    }

  def load_state(self, saved: dict[str, Any]) -> None:
    """Takes over what `state_dict` gave."""
    saved = dict(saved)
    counts = np.asarray(saved.pop("counts"))
    self.pairs = np.asarray(saved.pop("pairs"))
    self._labeller.counts = LabelCounts(*(int(n) for n in counts))
    self._buffer.load_state(saved)

  def close(self) -> None:
    """Ends the labelling."""
    self._labeller.close()
