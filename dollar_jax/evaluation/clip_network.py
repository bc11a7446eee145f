"""A small network that sees whole clips, for the features it learns.

It is trained to tell digit and direction; what its last hidden layer makes of
a clip places it in a space where distances mean something: blur, noise, junk
in the background, a wrong speed and a digit that turns into another all move
a clip away from the real ones.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from dollar_jax.typing import Array, Params

FEATURES = 64
"""Width of the features."""

BATCH = 64
"""Clips in one step of training, and in one call of `embed`."""


class ClipNetwork(nn.Module):
  """Frames one by one, then all of them together: digit and direction.

  Attributes:
    digits: number of digits.
    directions: number of directions.
  """

  digits: int
  directions: int

  @nn.compact
  def __call__(self, clips: Array) -> tuple[Array, Array, Array]:
    """Returns (features [B, FEATURES], digit logits, direction logits).

    Args:
      clips: uint8 [B, F, H, W], H and W multiples of 4.
    """
    batch = len(clips)
    x = rearrange(
      clips / jnp.float32(255),
      "b f (h p) (w q) -> (b f) h w (p q)",
      p=4,
      q=4,
    )
    x = nn.relu(nn.Conv(32, (3, 3))(x))
    x = nn.relu(nn.Conv(48, (3, 3), strides=2)(x))
    x = nn.relu(nn.Dense(48)(x.reshape(len(x), -1)))
    features = nn.Dense(FEATURES)(x.reshape(batch, -1))
    x = nn.relu(features)
    return features, nn.Dense(self.digits)(x), nn.Dense(self.directions)(x)


def embed(
  network: ClipNetwork, params: Params, clips: np.ndarray
) -> np.ndarray:
  """Features float32 [N, FEATURES] of clips uint8 [N, F, H, W]."""
  parts = []
  for start in range(0, len(clips), BATCH):
    part = clips[start : start + BATCH]
    pad = [(0, BATCH - len(part))] + [(0, 0)] * 3  # one shape, one compile
    features = _embed(network, params, np.pad(part, pad))
    parts.append(np.asarray(features)[: len(part)])
  return np.concatenate(parts)


def train(
  network: ClipNetwork,
  clips: np.ndarray,
  digits: np.ndarray,
  directions: np.ndarray,
  epochs: int,
  seed: int,
) -> Params:
  """Trains the network from scratch; returns its parameters.

  Args:
    network: the network.
    clips: uint8 [N, F, H, W].
    digits: int32 [N].
    directions: int32 [N].
    epochs: passes over the clips.
    seed: seed of parameters and order.
  """
  batch = min(BATCH, len(clips))
  each = len(clips) // batch
  optimizer = optax.adamw(
    optax.cosine_onecycle_schedule(each * epochs, 4e-3), weight_decay=1e-2
  )
  params = network.init(jax.random.key(seed), clips[:1])["params"]

  def loss_fn(params, clips, digits, directions):
    _, *logits = network.apply({"params": params}, clips)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return entropy(logits[0], digits).mean() + (
      entropy(logits[1], directions).mean()
    )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, *batch):
    gradients = jax.grad(loss_fn)(params, *batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  rng = np.random.default_rng(seed)
  state = optimizer.init(params)
  for _ in range(epochs):
    for index in rng.permutation(len(clips))[: each * batch].reshape(each, -1):
      drawn = (clips[index], digits[index], directions[index])
      params, state = step(params, state, *drawn)
  return params


@functools.partial(jax.jit, static_argnums=0)
def _embed(network: ClipNetwork, params: Params, clips: Array) -> Array:
  return network.apply({"params": params}, clips)[0]
