"""Fits the latent reward model to true rewards."""

import jax
import jax.numpy as jnp
import optax

from dollar_jax.losses.reward import reward_matching_loss
from dollar_jax.models.latent_reward import LatentReward
from dollar_jax.train.config import OptimizerConfig
from dollar_jax.train.state import NetworkState, apply_gradients, gradients
from dollar_jax.train.teacher_step import Step
from dollar_jax.typing import Array, Params, PyTree


def make_reward_step(
  latent_reward: LatentReward,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> Step:
  """Builds the latent reward model's update.

  `batch` needs `latents` [B, T, H, W, C], `rewards` [B] in standard
  deviations, and `text` [B, S, D], `text_mask` [B, S] if it is conditioned.
  """

  def step(state: NetworkState, frozen: PyTree, batch: PyTree, key: Array):
    del frozen  # the interface of every step

    def loss_fn(params: Params, batch: PyTree, key: Array):
      del key
      predicted = latent_reward.apply(
        {"params": params},
        batch["latents"],
        batch.get("text"),
        batch.get("text_mask"),
        method="members",
      )
      losses = jax.vmap(reward_matching_loss, (0, None))
      return jnp.mean(losses(predicted, batch["rewards"])), {}

    loss, _, grads = gradients(
      loss_fn, state.params, batch, key, config.accumulate
    )
    state, metrics = apply_gradients(state, loss, grads, optimizer, config.ema)
    return state, {"loss": loss, **metrics}

  return step
