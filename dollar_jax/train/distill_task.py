"""Distillation: a few-step student with its critics."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding

from dollar_jax.models.lora import adapter_axes, init_adapters
from dollar_jax.parallel import rules
from dollar_jax.parallel.compilation import compiler_options
from dollar_jax.parallel.mesh import platform_of
from dollar_jax.train import state as states
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.descriptions import architecture, structure
from dollar_jax.train.guard import Guard
from dollar_jax.train.guard_judge import GuardState
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.optim import (
  StepFn,
  make_optimizer,
  make_schedule,
  scheduled,
)
from dollar_jax.train.pixel_reward import PixelReward
from dollar_jax.train.policy import Policy
from dollar_jax.train.preference_tuner import PreferenceTuner
from dollar_jax.train.reward_network import RewardState
from dollar_jax.train.reward_tuner import RewardTuner
from dollar_jax.train.score_step import make_score_step
from dollar_jax.train.state import NetworkState
from dollar_jax.train.student_step import Student, make_student_step
from dollar_jax.typing import Array, Params, PyTree


@struct.dataclass
class DistillState:
  """A student with its critics; what a run does not use is None.

  Attributes:
    student: the few-step student.
    fake_score: the score of the student's own distribution.
    reward: the latent reward model.
    guard: what is known of the true rewards.
  """

  student: NetworkState
  fake_score: NetworkState | None
  reward: RewardState | None
  guard: GuardState | None = None


class DistillTask:
  """Distils a teacher: VSD, consistency, latent reward, as weighted.

  Attributes:
    description: see `loop.Task`.
    student: the student's sampler and losses.
    student_step: jitted; None of its parts is built where its weight is 0.
    score_step: jitted, or None without VSD.
    tuner: the latent reward model's side, or None without a reward.
    guard: watches the true rewards, or None.
    policy: the policy gradient's side, or None without it.
    pixels: the pixel gradient's side, or None without it.
  """

  def __init__(
    self,
    student: Student,
    teacher: Params,
    config: TrainConfig,
    null_prompt: dict[str, np.ndarray],
    mesh: Mesh,
    tuner: RewardTuner | PreferenceTuner | None = None,
    guard: Guard | None = None,
    policy: Policy | None = None,
    pixels: PixelReward | None = None,
    start: dict[str, Params] | None = None,
  ):
    """Prepares the steps; nothing is compiled yet.

    Args:
      student: sampler and losses.
      teacher: its parameters; kept in `config.frozen_dtype`.
      config: the run.
      null_prompt: `null_text` [S, D] and `null_mask` [S].
      mesh: where it is trained; arrays are put there by `init`.
      tuner: required with a reward weight.
      guard: ends a run that spoils the student.
      policy: required with a DDPO weight.
      pixels: required with a pixel weight.
      start: `student` and `fake_score` parameters to start from, adapters
        where the student is one; what is absent starts as the teacher.
    """
    self._config, self._mesh = config, mesh
    self.student, self.tuner = student, tuner
    self.guard, self.policy, self.pixels = guard, policy, pixels
    self._given = start or {}
    self._start = {"student": teacher, "fake_score": teacher} | self._given
    self._teacher, self._null_prompt, self._frozen = teacher, null_prompt, {}
    everywhere = rules.replicated(mesh)

    def jitted(step: StepFn, state: NetworkState) -> StepFn:
      places = rules.shardings_of(state), everywhere
      return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=places,
        compiler_options=compiler_options(platform_of(mesh)),
      )

    c = config.distill
    scores = c.score_warmup + c.score_steps * max(config.steps - c.cd_warmup, 1)
    self._schedules = {"student": make_schedule(config.optimizer, config.steps)}
    self._optimizer = make_optimizer(
      config.optimizer, self._schedules["student"]
    )
    make_step = functools.partial(
      make_student_step,
      student,
      latent_reward=tuner.model if tuner else None,
      pixel_force=pixels.force if pixels else None,
    )
    self._shapes = {"student": self._placed("student", self._optimizer)}
    self.student_step = jitted(
      scheduled(make_step, config.optimizer), self._shapes["student"]
    )
    alone = dataclasses.replace(student, config=c.consistency_alone)
    make_step = functools.partial(make_student_step, alone)
    self._warmup_step = jitted(
      scheduled(make_step, config.optimizer), self._shapes["student"]
    )
    self._score_optimizer, self.score_step = None, None
    if c.vsd_weight:
      schedule = make_schedule(config.score_optimizer, scores)
      self._schedules["fake_score"] = schedule
      self._score_optimizer = make_optimizer(config.score_optimizer, schedule)
      remat = config.score_remat or config.remat
      fitted = dataclasses.replace(
        student, denoiser=student.denoiser.with_config(remat=remat)
      )
      step = scheduled(
        functools.partial(make_score_step, fitted), config.score_optimizer
      )
      state = self._placed("fake_score", self._score_optimizer)
      self._shapes["fake_score"] = state
      self.score_step = jitted(step, state)
    self._shapes["teacher"] = self._placed_teacher()
    self.description = {
      "task": "distill",
      "model": architecture(student.denoiser),
      "lora_rank": student.lora_rank or None,
      "grid": [float(t) for t in student.grid],
      "optimizer": structure(config.optimizer),
      "score_optimizer": c.vsd_weight > 0 and structure(config.score_optimizer),
      "reward": tuner is not None and tuner.description,
      "guard": guard and guard.description,
      "policy": policy and policy.description,
      "pixels": pixels and pixels.description,
    }

  def init(self) -> DistillState:
    """Student and fake score as copies of what they start from."""
    everywhere = rules.replicated(self._mesh)
    self._frozen = rules.put(self._null_prompt, everywhere)
    self._placed_schedules = rules.put(self._schedules, everywhere)
    self._frozen["schedule"] = self._placed_schedules["student"]
    axes, dtype = self.student.denoiser.logical_axes, self._config.frozen_dtype
    self._frozen["teacher"] = self._put(self._teacher, axes, dtype)
    student = self._network("student", self._optimizer)
    fake_score = reward = guard = None
    if self.score_step is not None:
      fake_score = self._network("fake_score", self._score_optimizer)
    if self.tuner is not None:
      reward = self.tuner.init()
    if self.policy is not None:
      self.policy.decoder.init()
    if self.pixels is not None:
      self._frozen["pixels"] = self.pixels.init()
    if self.guard is not None:
      guard = self.guard.init(student.averaged)
    return DistillState(student, fake_score, reward, guard)

  def _network(self, name: str, optimizer: Any) -> NetworkState:
    """A network's first state, made where it belongs."""
    create = jax.jit(
      functools.partial(self._create, name, optimizer),
      out_shardings=rules.shardings_of(self._shapes[name]),
      donate_argnums=0,
    )
    if self._has_fresh_adapters(name):
      return create(named_key(self._config.seed, f"adapters of {name}", 0))
    start = self._start[name]
    return create(self._put(start, self._axes(start), "float32"))

  def _create(
    self, name: str, optimizer: Any, start: Params | Array
  ) -> NetworkState:
    """From parameters, or from the key of fresh adapters."""
    if self._has_fresh_adapters(name):
      rank = self.student.lora_rank
      start = init_adapters(start, self._start[name], rank)
    config = self._config
    ema = config.optimizer if name == "student" else config.score_optimizer
    return states.create(start, optimizer, ema.ema > 0)

  def _has_fresh_adapters(self, name: str) -> bool:
    return self.student.lora_rank > 0 and name not in self._given

  def _placed(self, name: str, optimizer: Any) -> NetworkState:
    """Shapes of a network's state, where they belong."""
    start = jax.random.key(0)
    if not self._has_fresh_adapters(name):
      start = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32),
        self._start[name],
      )
    create = functools.partial(self._create, name, optimizer)
    state = jax.eval_shape(create, start)
    return states.placed(state, self._axes(state.params), self._mesh)

  def _placed_teacher(self) -> Params:
    """Shapes of the frozen teacher, where they belong."""
    axes = self.student.denoiser.logical_axes
    shardings = rules.param_shardings(axes, self._teacher, self._mesh)
    return rules.placed(self._teacher, shardings, self._config.frozen_dtype)

  def _axes(self, params: Params) -> PyTree:
    """Names of the axes of a network's parameters, or of its adapters'."""
    axes = self.student.denoiser.logical_axes
    return adapter_axes(axes, params) if self.student.lora_rank else axes

  def _put(self, params: Params, axes: PyTree, dtype: str) -> Params:
    """Puts parameters, or adapters, where they belong."""
    shardings = rules.param_shardings(axes, params, self._mesh)

    def place(leaf: Any, sharding: NamedSharding) -> Array:
      return rules.put(np.asarray(leaf).astype(dtype), sharding)

    return jax.tree.map(place, params, shardings)

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
        held = {
          "student": state.student.params,
          "schedule": self._placed_schedules["fake_score"],
        }
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
    if self.guard is not None and first:
      state, more = self._look(state, batches, index)
      metrics |= more

    batch, prompts = batches.next()
    if self.pixels is not None:
      batch = {**batch, "conditions": self.pixels.conditions(prompts)}
    if self.policy is not None:
      sampler = self.student.bind(state.student.params, frozen)
      rows, more = self.policy.rows(sampler, batches, index)
      batch, metrics = {**batch, "policy": rows}, metrics | more
    key = named_key(seed, "student", index)
    student, more = self.student_step(state.student, frozen, batch, key)
    state, metrics = state.replace(student=student), more | metrics
    if self.guard is not None and self.guard.due(index + 1):
      state, more = self._look(state, batches, index + 1)
      metrics |= more
    return state, metrics

  def _look(
    self, state: DistillState, batches: Batches, step: int
  ) -> tuple[DistillState, dict[str, Any]]:
    """Has the guard look at the averaged student."""
    averaged = state.student.averaged
    sampler = self.student.bind(averaged, self._frozen)
    guard, metrics, labelled = self.guard.look(
      state.guard, averaged, sampler, batches, step
    )
    if self.tuner is not None:
      metrics |= self.tuner.estimate(state.reward, labelled)
    return state.replace(guard=guard), metrics

  def to_saved(self, state: DistillState) -> PyTree:
    """The state and the labels that the host holds."""
    labels = self.tuner.state_dict() if self.tuner else {}
    return {"networks": state, "labels": labels}

  def from_saved(self, saved: PyTree) -> DistillState:
    """Puts the labels back where they were."""
    if self.tuner:
      self.tuner.load_state(saved["labels"])
    if self.guard:
      self.guard.restored(saved["networks"].guard)
    return saved["networks"]

  def ended(self) -> str | None:
    """What the guard says."""
    return self.guard and self.guard.verdict

  def result(self, state: DistillState) -> Params:
    """The student, averaged: the last one, or the guard's best."""
    best = self.ended() or self._config.guard.keep_best
    if self.guard and best:
      return state.guard.best_params
    return state.student.averaged

  def programs(self, batch: PyTree, start: int = 0) -> dict[str, Program]:
    """What a run compiles, by name; see `loop.Task.programs`."""
    shapes, key = self._shapes, rules.key_shape()
    student = shapes["student"]
    everywhere = rules.replicated(self._mesh)
    frozen = rules.placed(self._null_prompt, everywhere)
    schedules = rules.placed(self._schedules, everywhere)
    frozen["teacher"] = shapes["teacher"]
    frozen["schedule"] = schedules["student"]
    found = {}
    if start < self._config.distill.cd_warmup:
      args = student, dict(frozen), batch, key
      found["warm-up"] = Program(self._warmup_step, args)
    if self.score_step is not None:
      frozen["fake_score"] = shapes["fake_score"].params
      held = {
        "student": student.params,
        "schedule": schedules["fake_score"],
      }
      if self.student.lora_rank:
        held["teacher"] = shapes["teacher"]
      args = shapes["fake_score"], held, batch, key
      found["score"] = Program(self.score_step, args)
    sampler = self.student.bind(student.params, frozen)
    if self.tuner is not None:
      found |= self.tuner.programs(sampler, batch, key)
      frozen["latent_reward"] = self.tuner.shapes.params
    if self.guard is not None:
      found["guard"] = self.guard.program(sampler, batch, key)
    if self.policy is not None:
      more, rows = self.policy.programs(sampler, batch, key)
      found, batch = more | found, batch | {"policy": rows}
    if self.pixels is not None:
      frozen["pixels"] = self.pixels.shapes
      size = len(batch["latents"])
      batch = batch | {"conditions": self.pixels.conditions_shape(size)}
    args = student, frozen, batch, key
    return {"student": Program(self.student_step, args), **found}

  def resident(self) -> dict[str, PyTree]:
    """Shapes of what stays on the devices, by name."""
    found = dict(self._shapes)
    if self.tuner is not None:
      found["latent_reward"] = self.tuner.shapes
    if user := self.tuner or self.policy or self.guard:
      found["decoder"] = user.decoder.shapes
    if self.pixels is not None:
      found["pixels"] = self.pixels.shapes
    if self.guard is not None:
      found["best"] = found["student"].averaged
    return found

  def close(self) -> None:
    """Ends the labelling."""
    if self.tuner:
      self.tuner.close()
    if self.guard:
      self.guard.close()
    if self.policy:
      self.policy.close()
