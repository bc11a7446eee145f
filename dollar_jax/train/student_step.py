"""The few-step student: VSD + consistency + latent reward in one update.

Each term is built only if its weight is above zero, so that a term that is
off costs no forward pass and no memory. All three act on the student's `x0`
with forces of the same unit (an RMS of about 1 per latent element, over the
number of elements), so the weights are ratios of forces at any latent size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion import samplers, timesteps
from dollar_jax.diffusion.guidance import guided
from dollar_jax.diffusion.solvers import ddim_step, renoise_score
from dollar_jax.losses.consistency import pseudo_huber
from dollar_jax.losses.reward import reward_force, reward_loss
from dollar_jax.losses.vsd import vsd_gradient, vsd_loss
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.latent_reward import LatentReward
from dollar_jax.models.lora import Adapted
from dollar_jax.train.config import DistillConfig, OptimizerConfig
from dollar_jax.train.optim import StepFn
from dollar_jax.train.state import NetworkState, apply_gradients, gradients
from dollar_jax.typing import Array, Params, PredictFn, PyTree

PixelForce = Callable[[PyTree, Array, Array], tuple[Array, Array]]
"""`(frozen, x0, conditions)` → mean reward and force; `PixelReward.force`."""


@dataclasses.dataclass(frozen=True)
class Student:
  """What sampling and training of one few-step student share.

  Attributes:
    denoiser: the network that teacher, student and fake score have in common.
    config: the losses and the sampler's settings.
    lora_rank: where above 0, the parameters of student and fake score are
      adapters of this rank on the teacher's.
  """

  denoiser: Denoiser
  config: DistillConfig
  lora_rank: int = 0

  @property
  def grid(self) -> np.ndarray:
    """The K times [K] at which the student is evaluated."""
    if self.config.grid:
      return timesteps.check_student_grid(self.config.grid)
    shift = self.config.grid_shift or self.denoiser.shift
    return timesteps.student_grid(self.config.num_steps, shift)

  def bind(self, params: Params, frozen: PyTree) -> Params | Adapted:
    """What a network computes with: its own, or adapters on the teacher's."""
    return Adapted(frozen["teacher"], params) if self.lora_rank else params

  def predict(self, params: Params, text: Array, text_mask: Array) -> PredictFn:
    """Binds parameters and text: `f(x_t, t) -> x0`."""
    return lambda x_t, t: self.denoiser.predict_x0(
      params, x_t, t, text, text_mask
    )

  def prompt_rows(self, size: int) -> np.ndarray:
    """Which row of a batch of `size` each of `samples` has its prompt from."""
    rows = np.arange(size)
    if self.config.inputs == "data":
      return rows
    return rows // len(self.grid) * len(self.grid)

  def rollout(self, batch: PyTree, key: Array) -> tuple:
    """Draws ceil(B / K) videos' noise, of every K-th prompt.

    Every step of a rollout serves as a sample, so B samples of every step
    index, equally often, cost few whole rollouts (stratified, not drawn, k).
    Where a batch is split over devices, so are its rollouts: of whole K rows a
    device keeps its own.

    Returns:
      (noises [K, R, ...], text, text_mask of R).
    """
    shape, steps = batch["latents"].shape, len(self.grid)
    text, mask = batch["text"][::steps], batch["text_mask"][::steps]
    noises = jax.random.normal(key, (steps, len(text), *shape[1:]))
    return noises, text, mask

  def walk(
    self,
    walk_fn: Callable[..., Any],
    params: Params,
    noises: Array,
    *text: Array,
  ) -> Any:
    """Applies one of the walks of `samplers` to this student.

    Args:
      walk_fn: `samplers.student_path`, `student_inputs` or `sample_student`.
      params: what the network computes with.
      noises: [K, B, ...].
      *text: [B, S, D] and its mask [B, S].
    """
    c = self.config
    predict = self.predict(params, *text)
    process = self.denoiser.process
    return walk_fn(predict, process, noises, self.grid, c.fresh_noise)

  def inputs(self, params: Params, batch: PyTree, key: Array) -> tuple:
    """Draws what the student is given in training, without gradient.

    Returns:
      (x_t [B, ...], t [B], text [B, S, D], text_mask [B, S]).
    """
    x0 = batch["latents"]
    size, steps = x0.shape[0], len(self.grid)
    if self.config.inputs == "data":
      index_key, noise_key = jax.random.split(key)
      index = jax.random.randint(index_key, (size,), 0, steps)
      t = jnp.asarray(self.grid)[index]
      eps = jax.random.normal(noise_key, x0.shape)
      x_t = processes.add_noise(self.denoiser.process, x0, eps, t)
      return x_t, t, batch["text"], batch["text_mask"]
    noises, *text = self.rollout(batch, key)
    inputs = self.walk(samplers.student_inputs, params, noises, *text)
    x_t = jax.lax.stop_gradient(_video_after_video(inputs))
    t = jnp.tile(jnp.asarray(self.grid), inputs.shape[1])
    rows = x_t, t, *(jnp.repeat(a, steps, axis=0) for a in text)
    return tuple(a[:size] for a in rows)

  def samples(self, params: Params, batch: PyTree, key: Array) -> tuple:
    """Draws the student's `x0`, for the fake score and the reward to learn.

    Returns:
      (x0 [B, ...], text [B, S, D], text_mask [B, S]), no gradient.
    """
    size, steps = batch["latents"].shape[0], len(self.grid)
    if self.config.inputs == "data":
      x_t, t, *text = self.inputs(params, batch, key)
      return jax.lax.stop_gradient(self.predict(params, *text)(x_t, t)), *text
    noises, *text = self.rollout(batch, key)
    _, answers = self.walk(samplers.student_path, params, noises, *text)
    x0 = _video_after_video(answers)
    rows = x0, *(jnp.repeat(a, steps, axis=0) for a in text)
    return tuple(jax.lax.stop_gradient(a[:size]) for a in rows)

  def transitions(self, params: Params, batch: PyTree, key: Array) -> tuple:
    """Draws R = ceil(B / (K - 1)) videos and keeps what each step did.

    Returns:
      The videos' latents [R, ...], and of the K - 1 steps that add noise
      (x_t [K - 1, R, ...], t [K - 1, R], the gradient of the log-density with
      respect to x0 [K - 1, R, ...], text, text_mask [K - 1, R, ...]).
    """
    steps, fresh = len(self.grid), self.config.fresh_noise
    text, mask = (batch[k][:: steps - 1] for k in ("text", "text_mask"))
    shape = (steps, len(text), *batch["latents"].shape[1:])
    noises = jax.random.normal(key, shape)
    process, grid = self.denoiser.process, jnp.asarray(self.grid)
    inputs, answers = self.walk(
      samplers.student_path, params, noises, text, mask
    )
    x0, t = answers[-1], jnp.broadcast_to(grid[:, None], shape[:2])
    score = jax.vmap(renoise_score, (None, 0, 0, 0, None))(
      process, t[:-1], t[1:], noises[1:], fresh
    )
    path = inputs[:-1], t[:-1], score
    texts = (jnp.stack([a] * (steps - 1)) for a in (text, mask))
    return x0, (*path, *texts)

  def videos(self, params: Params, batch: PyTree, key: Array) -> Array:
    """Draws finished latents [B, ...], as whoever uses the student does."""
    shape = batch["latents"].shape
    noises = jax.random.normal(key, (len(self.grid), *shape))
    text = batch["text"], batch["text_mask"]
    return self.walk(samplers.sample_student, params, noises, *text)


def _video_after_video(steps: Array) -> Array:
  """Rows [R K, ...] of the steps [K, R, ...] of R videos."""
  return jnp.swapaxes(steps, 0, 1).reshape(-1, *steps.shape[2:])


def _vsd_force(
  student: Student, frozen: PyTree, x0: Array, text: tuple, key: Array
) -> Array:
  """VSD's gradient [B, ...] at the student's samples."""
  c, denoiser = student.config, student.denoiser
  time_key, noise_key = jax.random.split(key)
  t = timesteps.draw_score_time(
    time_key, x0.shape[0], denoiser.shift, c.time_low, c.time_high
  )
  eps = jax.random.normal(noise_key, x0.shape)
  x_t = processes.add_noise(denoiser.process, x0, eps, t)
  real = _teacher(student, frozen, text)(x_t, t)
  fake_score = student.bind(frozen["fake_score"], frozen)
  fake = student.predict(fake_score, *text)(x_t, t)
  return vsd_gradient(x0, real, fake)


def _teacher(student: Student, frozen: PyTree, text: tuple):
  """The guided teacher as `f(x_t, t) -> x0`, in its own compute type."""
  dtype = jax.tree.leaves(frozen["teacher"])[0].dtype.name
  denoiser = student.denoiser.with_config(dtype=dtype)

  def predict(x_t: Array, t: Array, text: Array, mask: Array) -> Array:
    return denoiser.predict_x0(frozen["teacher"], x_t, t, text, mask)

  null = frozen["null_text"], frozen["null_mask"]
  return guided(predict, *text, *null, student.config.guidance)


def _consistency_loss(
  student: Student,
  params: Params,
  frozen: PyTree,
  batch: PyTree,
  key: Array,
) -> Array:
  """One teacher jump of k grid points; the student agrees at both ends."""
  c, denoiser = student.config, student.denoiser
  text = batch["text"], batch["text_mask"]
  x0 = batch["latents"]
  pair_key, noise_key = jax.random.split(key)
  grid = jnp.asarray(timesteps.teacher_grid(c.cd_grid, denoiser.shift))
  t, s = timesteps.consistency_pairs(pair_key, x0.shape[0], grid, c.cd_jump)
  eps = jax.random.normal(noise_key, x0.shape)
  x_t = processes.add_noise(denoiser.process, x0, eps, t)
  jumped = ddim_step(
    denoiser.process, x_t, _teacher(student, frozen, text)(x_t, t), t, s
  )
  ema = student.bind(frozen["ema"], frozen)
  ahead = student.predict(ema, *text)(jumped, s)
  at_data = (s == 0).reshape(-1, *[1] * (x0.ndim - 1))
  target = jax.lax.stop_gradient(jnp.where(at_data, jumped, ahead))
  return pseudo_huber(student.predict(params, *text)(x_t, t), target, c.huber)


def make_student_step(
  student: Student,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
  latent_reward: LatentReward | None = None,
  pixel_force: PixelForce | None = None,
) -> StepFn:
  """Builds the student's update.

  `frozen` needs `teacher`, `null_text` [S, D] and `null_mask` [S];
  `fake_score` with VSD, `latent_reward` with a reward, `pixels` with a reward
  of pixels. `batch` needs `latents` [B, T, H, W, C], `text` [B, S, D] and
  `text_mask` [B, S]; with DDPO `policy`, see `policy.Policy.rows`; with a
  reward of pixels `conditions` [B, P], see `pixel_reward.PixelReward`.
  """
  c = student.config

  def step(state: NetworkState, frozen: PyTree, batch: PyTree, key: Array):
    with_ema = {**frozen, "ema": state.averaged}
    if c.acts_on_samples:
      # drawn for the whole batch: its parts may be too small for rollouts
      held_still = student.bind(state.params, frozen)
      input_key = jax.random.split(key, 3)[0]
      drawn = student.inputs(held_still, batch, input_key)
      batch = {**batch, "drawn": drawn}
    if c.pixel_weight:
      conditions = batch["conditions"]
      rows = student.prompt_rows(len(conditions))
      batch["conditions"] = conditions[rows]

    def loss_fn(params: Params, batch: PyTree, key: Array):
      _, vsd_key, cd_key = jax.random.split(key, 3)
      total, metrics = jnp.zeros(()), {}
      params = student.bind(params, frozen)
      if c.acts_on_samples:
        x_t, t, *text = batch["drawn"]
        x0 = student.predict(params, *text)(x_t, t)
        held = jax.lax.stop_gradient(x0)
      if c.vsd_weight:
        force = _vsd_force(student, frozen, held, text, vsd_key)
        total += c.vsd_weight * vsd_loss(x0, force)
        metrics["vsd_force"] = jnp.sqrt(jnp.mean(force**2))
      if c.reward_weight:
        score, pull = _reward_force(latent_reward, frozen, held, text)
        total += c.reward_weight * reward_loss(x0, pull)
        metrics["latent_reward"] = score
        metrics["reward_force"] = jnp.sqrt(jnp.mean(pull**2))
      if c.pixel_weight:
        score, pull = pixel_force(frozen["pixels"], held, batch["conditions"])
        total += c.pixel_weight * reward_loss(x0, pull)
        metrics["pixel_reward"] = score
      if c.ddpo_weight:
        x_t, t, push, *text = batch["policy"]
        moved = student.predict(params, *text)(x_t, t)
        total += c.ddpo_weight * reward_loss(moved, push)
      if c.cd_weight:
        loss = _consistency_loss(student, params, with_ema, batch, cd_key)
        total += c.cd_weight * loss
        metrics["consistency"] = loss
      return total, metrics

    loss, metrics, grads = gradients(
      loss_fn, state.params, batch, key, config.accumulate
    )
    state, more = apply_gradients(state, loss, grads, optimizer, config.ema)
    return state, {**metrics, **more}

  return step


def _reward_force(
  latent_reward: LatentReward, frozen: PyTree, x0: Array, text: list
) -> tuple[Array, Array]:
  """Mean latent reward, and its normalised gradient at `x0` [B, ...]."""

  def total(x0: Array) -> Array:
    variables = {"params": frozen["latent_reward"]}
    return jnp.sum(latent_reward.apply(variables, x0, *text))

  value, gradient = jax.value_and_grad(total)(x0)
  return value / x0.shape[0], reward_force(gradient)
