"""The two kinds of training: a teacher, and a few-step student."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.lora import init_adapters
from dollar_jax.parallel.mesh import make_mesh, replicate
from dollar_jax.train import state as states
from dollar_jax.train.config import OptimizerConfig, TrainConfig, to_dict
from dollar_jax.train.loop import Batches, named_key
from dollar_jax.train.optim import make_optimizer
from dollar_jax.train.reward_tuner import RewardState, RewardTuner
from dollar_jax.train.score_step import make_score_step
from dollar_jax.train.state import NetworkState
from dollar_jax.train.student_step import Student, make_student_step
from dollar_jax.train.teacher_step import make_teacher_step
from dollar_jax.typing import Array, Params, PyTree


def architecture(denoiser: Denoiser) -> dict[str, Any]:
  """What decides the shapes of a denoiser's parameters, and their meaning."""
  config = to_dict(denoiser.config)
  config = {k: v for k, v in config.items() if k not in ("dtype", "remat")}
  process, prediction = denoiser.process.name, denoiser.prediction
  return {**config, "process": process, "prediction": prediction}


def _structure(config: OptimizerConfig) -> dict[str, Any]:
  """What decides which arrays a network's state has."""
  return {
    "name": config.name,
    "clips": config.clip_norm > 0,
    "averages": config.ema > 0,
  }


class TeacherTask:
  """Trains a denoiser from scratch on real latents.

  Attributes:
    description: see `loop.Task`.
    step: the jitted `(state, frozen, batch, key) -> (state, metrics)`.
  """

  def __init__(
    self,
    denoiser: Denoiser,
    config: TrainConfig,
    null_prompt: dict[str, np.ndarray],
    latent_shape: tuple[int, ...],
  ):
    """Prepares the step; nothing is compiled yet.

    Args:
      denoiser: the network.
      config: the run.
      null_prompt: `null_text` [S, D], `null_mask` [S], for dropped captions.
      latent_shape: T, H, W, C.
    """
    self._config, self._mesh = config, make_mesh()
    self._denoiser, self._latent_shape = denoiser, latent_shape
    self._optimizer = make_optimizer(config.optimizer, config.steps)
    self._frozen = replicate(null_prompt, self._mesh)
    step = make_teacher_step(
      denoiser,
      self._optimizer,
      config.optimizer,
      config.data.caption_dropout,
    )
    self.step = jax.jit(step, donate_argnums=0)
    self.description = {
      "task": "teacher",
      "model": architecture(denoiser),
      "optimizer": _structure(config.optimizer),
    }

  def init(self) -> NetworkState:
    """A fresh network."""
    key = named_key(self._config.seed, "init", 0)
    text_shape = self._frozen["null_text"].shape
    init = jax.jit(self._denoiser.init, static_argnums=(1, 2))
    params = init(key, self._latent_shape, text_shape)
    ema = self._config.optimizer.ema > 0
    return replicate(states.create(params, self._optimizer, ema), self._mesh)

  def update(
    self, state: NetworkState, batches: Batches, index: int
  ) -> tuple[NetworkState, dict[str, Array]]:
    """One gradient update."""
    batch, _ = batches.next()
    key = named_key(self._config.seed, "teacher", index)
    return self.step(state, self._frozen, batch, key)

  def to_saved(self, state: NetworkState) -> PyTree:
    """The state as it is."""
    return state

  def from_saved(self, saved: PyTree) -> NetworkState:
    """The state as it is."""
    return saved

  def close(self) -> None:
    """Nothing runs in the background."""


@struct.dataclass
class DistillState:
  """A student with its critics; what a run does not use is None.

  Attributes:
    student: the few-step student.
    fake_score: the score of the student's own distribution.
    reward: the latent reward model.
  """

  student: NetworkState
  fake_score: NetworkState | None
  reward: RewardState | None


class DistillTask:
  """Distils a teacher: VSD, consistency, latent reward, as weighted.

  Attributes:
    description: see `loop.Task`.
    student: the student's sampler and losses.
    student_step: jitted; None of its parts is built where its weight is 0.
    score_step: jitted, or None without VSD.
    tuner: the latent reward model's side, or None without a reward.
  """

  def __init__(
    self,
    student: Student,
    teacher: Params,
    config: TrainConfig,
    null_prompt: dict[str, np.ndarray],
    tuner: RewardTuner | None = None,
    start: dict[str, Params] | None = None,
  ):
    """Prepares the steps; nothing is compiled yet.

    Args:
      student: sampler and losses.
      teacher: its parameters; kept in `config.frozen_dtype`.
      config: the run.
      null_prompt: `null_text` [S, D] and `null_mask` [S].
      tuner: required with a reward weight.
      start: `student` and `fake_score` parameters to start from, adapters
        where the student is one; what is absent starts as the teacher.
    """
    self._config, self._mesh = config, make_mesh()
    self.student, self.tuner = student, tuner
    self._given = start or {}
    self._start = {"student": teacher, "fake_score": teacher} | self._given
    frozen = jax.tree.map(
      lambda x: jnp.asarray(x, config.frozen_dtype), teacher
    )
    self._frozen = replicate({"teacher": frozen, **null_prompt}, self._mesh)

    c = config.distill
    scores = c.score_warmup + c.score_steps * max(config.steps - c.cd_warmup, 1)
    self._optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_student_step(
      student,
      self._optimizer,
      config.optimizer,
      tuner.model if tuner else None,
    )
    self.student_step = jax.jit(step, donate_argnums=0)
    alone = dataclasses.replace(c, vsd_weight=0.0, reward_weight=0.0)
    self._warmup_step = jax.jit(
      make_student_step(
        dataclasses.replace(student, config=alone),
        self._optimizer,
        config.optimizer,
      ),
      donate_argnums=0,
    )
    self._score_optimizer, self.score_step = None, None
    if c.vsd_weight:
      self._score_optimizer = make_optimizer(config.score_optimizer, scores)
      step = make_score_step(
        student, self._score_optimizer, config.score_optimizer
      )
      self.score_step = jax.jit(step, donate_argnums=0)
    self.description = {
      "task": "distill",
      "model": architecture(student.denoiser),
      "lora_rank": student.lora_rank or None,
      "grid": [float(t) for t in student.grid],
      "optimizer": _structure(config.optimizer),
      "score_optimizer": c.vsd_weight > 0
      and _structure(config.score_optimizer),
      "reward": tuner is not None and tuner.description,
    }

  def init(self) -> DistillState:
    """Student and fake score as copies of what they start from."""

    def network(name: str, optimizer: Any, ema: float) -> NetworkState:
      if self.student.lora_rank and name not in self._given:
        key = named_key(self._config.seed, f"adapters of {name}", 0)
        params = init_adapters(key, self._start[name], self.student.lora_rank)
      else:
        params = jax.tree.map(
          lambda x: jnp.array(x, jnp.float32), self._start[name]
        )
      return states.create(params, optimizer, ema > 0)

    config = self._config
    student = network("student", self._optimizer, config.optimizer.ema)
    fake_score = None
    if self.score_step is not None:
      fake_score = network(
        "fake_score", self._score_optimizer, config.score_optimizer.ema
      )
    reward = self.tuner.init() if self.tuner else None
    return replicate(DistillState(student, fake_score, reward), self._mesh)

  def update(
    self, state: DistillState, batches: Batches, index: int
  ) -> tuple[DistillState, dict[str, Any]]:
    """Fits the critics, then moves the student once."""
    seed, c = self._config.seed, self._config.distill
    metrics, frozen = {}, dict(self._frozen)
    if index < c.cd_warmup:
      batch, _ = batches.next()
      key = named_key(seed, "student", index)
      student, metrics = self._warmup_step(state.student, frozen, batch, key)
      return state.replace(student=student), metrics
    first = index == c.cd_warmup

    if self.score_step is not None:
      score = state.fake_score
      for i in range(c.score_steps + (c.score_warmup if first else 0)):
        batch, _ = batches.next()
        key = named_key(seed, "score", index, i)
        held = {"student": state.student.params}
        if self.student.lora_rank:
          held["teacher"] = frozen["teacher"]
        score, more = self.score_step(score, held, batch, key)
      state = state.replace(fake_score=score)
      frozen["fake_score"] = score.params
      metrics |= {f"score_{name}": value for name, value in more.items()}

    if self.tuner is not None:
      reward = state.reward
      sampler = self.student.bind(state.student.params, frozen)
      if first:
        reward, _ = self.tuner.warm_up(reward, sampler, batches)
      if (index + 1) % self._config.reward.every == 0:
        reward, more = self.tuner.refresh(reward, sampler, batches, index + 1)
        metrics |= more
      state = state.replace(reward=reward)
      frozen["latent_reward"] = reward.network.params

    batch, _ = batches.next()
    key = named_key(seed, "student", index)
    student, more = self.student_step(state.student, frozen, batch, key)
    return state.replace(student=student), more | metrics

  def to_saved(self, state: DistillState) -> PyTree:
    """The state and the labels that the host holds."""
    labels = self.tuner.state_dict() if self.tuner else {}
    return {"networks": state, "labels": labels}

  def from_saved(self, saved: PyTree) -> DistillState:
    """Puts the labels back where they were."""
    if self.tuner:
      self.tuner.load_state(saved["labels"])
    return saved["networks"]

  def close(self) -> None:
    """Ends the labelling."""
    if self.tuner:
      self.tuner.close()
