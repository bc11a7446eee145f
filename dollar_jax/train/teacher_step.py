"""Trains a text-to-video denoiser on real latents."""

import jax
import jax.numpy as jnp
import optax

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion.timesteps import draw_score_time
from dollar_jax.losses.denoising import denoising_loss
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.train.config import OptimizerConfig
from dollar_jax.train.optim import StepFn
from dollar_jax.train.state import NetworkState, apply_gradients, gradients
from dollar_jax.typing import Array, Params, PyTree


def make_teacher_step(
  denoiser: Denoiser,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
  caption_dropout: float,
) -> StepFn:
  """Builds the step of denoising score matching with caption dropout.

  `frozen` needs `null_text` [S, D] and `null_mask` [S]; `batch` needs
  `latents` [B, T, H, W, C], `text` [B, S, D] and `text_mask` [B, S].
  """

  def step(state: NetworkState, frozen: PyTree, batch: PyTree, key: Array):
    def loss_fn(params: Params, batch: PyTree, key: Array):
      x0 = batch["latents"]
      size = x0.shape[0]
      time_key, noise_key, drop_key = jax.random.split(key, 3)
      t = draw_score_time(time_key, size, denoiser.shift, 0.0, 1.0)
      eps = jax.random.normal(noise_key, x0.shape)
      drop = jax.random.bernoulli(drop_key, caption_dropout, (size, 1))
      mask = jnp.where(drop, frozen["null_mask"], batch["text_mask"])
      text = jnp.where(drop[..., None], frozen["null_text"], batch["text"])
      x_t = processes.add_noise(denoiser.process, x0, eps, t)
      raw = denoiser.raw(params, x_t, t, text, mask)
      kind = denoiser.prediction
      target = processes.target(denoiser.process, x0, eps, t, kind)
      return denoising_loss(raw, target), {}

    loss, _, grads = gradients(
      loss_fn, state.params, batch, key, config.accumulate
    )
    state, metrics = apply_gradients(state, loss, grads, optimizer, config.ema)
    return state, {"loss": loss, **metrics}

  return step
