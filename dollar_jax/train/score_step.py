"""Keeps the fake score on the student's present distribution."""

import jax
import optax

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion.timesteps import draw_score_time
from dollar_jax.losses.denoising import denoising_loss
from dollar_jax.train.config import OptimizerConfig
from dollar_jax.train.optim import StepFn
from dollar_jax.train.state import NetworkState, apply_gradients, gradients
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Array, Params, PyTree


def make_score_step(
  student: Student,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> StepFn:
  """Builds the fake score's update: denoising the student's own samples.

  `frozen` needs `student`, the student's parameters, and `teacher` where both
  are adapters; `batch` is the student's. The loss is in the network's own
  prediction space.
  """
  denoiser, c = student.denoiser, student.config

  def step(state: NetworkState, frozen: PyTree, batch: PyTree, key: Array):
    # for the whole batch: its parts may be too small for rollouts
    sampler = student.bind(frozen["student"], frozen)
    samples = student.samples(sampler, batch, jax.random.split(key, 3)[0])

    def loss_fn(params: Params, batch: PyTree, key: Array):
      _, time_key, noise_key = jax.random.split(key, 3)
      x0, *text = batch
      t = draw_score_time(
        time_key, x0.shape[0], denoiser.shift, c.time_low, c.time_high
      )
      eps = jax.random.normal(noise_key, x0.shape)
      x_t = processes.add_noise(denoiser.process, x0, eps, t)
      raw = denoiser.raw(student.bind(params, frozen), x_t, t, *text)
      kind = denoiser.prediction
      target = processes.target(denoiser.process, x0, eps, t, kind)
      return denoising_loss(raw, target), {}

    loss, _, grads = gradients(
      loss_fn, state.params, samples, key, config.accumulate
    )
    state, metrics = apply_gradients(state, loss, grads, optimizer, config.ema)
    return state, {"loss": loss, **metrics}

  return step
