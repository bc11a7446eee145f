"""Fits the latent reward model to true rewards, or to votes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dollar_jax.losses.reward import preference_loss, reward_matching_loss
from dollar_jax.models.latent_reward import LatentReward
from dollar_jax.train.config import OptimizerConfig
from dollar_jax.train.optim import StepFn
from dollar_jax.train.state import NetworkState, apply_gradients, gradients
from dollar_jax.typing import Array, Params, PyTree


def make_reward_step(
  latent_reward: LatentReward,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> StepFn:
  """Builds the latent reward model's update.

  `batch` needs `latents` [B, T, H, W, C], `rewards` [B] in standard
  deviations, and `text` [B, S, D], `text_mask` [B, S] if it is conditioned.
  """

  def loss_fn(params: Params, batch: PyTree) -> Array:
    predicted = _members(latent_reward, params, batch, "latents")
    losses = jax.vmap(reward_matching_loss, (0, None))
    return jnp.mean(losses(predicted, batch["rewards"]))

  return _make_step(loss_fn, optimizer, config)


def make_preference_step(
  latent_reward: LatentReward,
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> StepFn:
  """Builds the update of a latent reward model that learns from votes.

  `batch` needs `better` and `worse` [B, T, H, W, C], `tie` [B] above 0 where
  neither was, and `text` [B, S, D], `text_mask` [B, S] if it is conditioned.
  """

  def loss_fn(params: Params, batch: PyTree) -> Array:
    better, worse = (
      _members(latent_reward, params, batch, name)
      for name in ("better", "worse")
    )
    losses = jax.vmap(preference_loss, (0, 0, None))
    return jnp.mean(losses(better, worse, batch["tie"] > 0))

  return _make_step(loss_fn, optimizer, config)


def _members(
  latent_reward: LatentReward, params: Params, batch: PyTree, name: str
) -> Array:
  """What each member makes of some latents of a batch, [members, B]."""
  return latent_reward.apply(
    {"params": params},
    batch[name],
    batch.get("text"),
    batch.get("text_mask"),
    method="members",
  )


def _make_step(
  loss_of: Callable[[Params, PyTree], Array],
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> StepFn:
  def step(state: NetworkState, frozen: PyTree, batch: PyTree, key: Array):
    del frozen  # the interface of every step

    def loss_fn(params: Params, batch: PyTree, key: Array):
      del key
      return loss_of(params, batch), {}

    loss, _, grads = gradients(
      loss_fn, state.params, batch, key, config.accumulate
    )
    state, metrics = apply_gradients(state, loss, grads, optimizer, config.ema)
    return state, {"loss": loss, **metrics}

  return step
