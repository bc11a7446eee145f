"""The latent reward model: a small CNN that reads a reward off a latent.

Section 3 of the method (arXiv 2412.15689): the student climbs the gradient of
this network, so neither the decoder nor the reward is ever differentiated.
"image" models look at each latent frame alone and average over time; "video"
models also mix neighbouring frames, each 3-D convolution being split into one
over space and one over time (arXiv 1711.11248).

A latent position stands for a patch of pixels, so a perceptron at every
position comes before the convolutions: on digits and JPEG size it halves the
samples needed. Activations are smooth and nothing is normalised along the
way, because the gradient with respect to the latent is what the student is
trained with, and a norm would make it explode where the latent is flat.

Several such networks make an ensemble. Far from what they were fitted to they
disagree, which tells how far the student has been led astray.
"""

import flax.linen as nn
import jax.numpy as jnp

from dollar_jax.models.configs import LatentRewardConfig
from dollar_jax.typing import Array, Params

_HALVE_FROM = 8
"""Between blocks an axis at least this long is halved; shorter ones stay."""


class LatentReward(nn.Module):
  """R(x0, text): one number a sample, for latents of any shape.

  The same parameters serve every T, H and W; C and D are fixed when they are
  made. The result is a mean over frames of a function of a mean over
  positions, so it does not grow with the clip.

  Attributes:
    config: sizes and kind.
  """

  config: LatentRewardConfig = LatentRewardConfig()

  def __call__(
    self,
    x0: Array,
    text: Array | None = None,
    text_mask: Array | None = None,
  ) -> Array:
    """Predicts the rewards, cautiously.

    Args:
      x0: float32 [B, T, H, W, C].
      text: float32 [B, S, D]; not read unless `text_conditioned`.
      text_mask: bool [B, S], True where a token counts; None: everywhere.

    Returns:
      float32 [B], in the unit of the values it is fitted to: the members'
      mean less `caution` of their deviations.

    Raises:
      ValueError: if x0 has not five axes, or the text it needs is not given.
    """
    found = self.members(x0, text, text_mask)
    mean = jnp.mean(found, axis=0)
    if not self.config.caution or self.config.members == 1:
      return mean
    # not `std`, whose gradient is not finite where all agree
    variance = jnp.mean((found - mean) ** 2, axis=0)
    return mean - self.config.caution * jnp.sqrt(variance + 1e-12)

  @nn.compact
  def members(
    self,
    x0: Array,
    text: Array | None = None,
    text_mask: Array | None = None,
  ) -> Array:
    """What each of M members predicts, float32 [M, B]; see `__call__`."""
    names = [f"member_{i}" for i in range(self.config.members)]
    return jnp.stack(
      [_Member(self.config, name=name)(x0, text, text_mask) for name in names]
    )


def normalised(params: Params, mean: Array, std: Array) -> Params:
  """Parameters of the same model with each member in a unit of its own.

  What a member predicts is linear in its last layer, so that its values less
  `mean`, by `std`, are exactly those of a model whose last layer is changed.

  Args:
    params: of a `LatentReward`.
    mean: float32 [M], what is taken off each member's values.
    std: float32 [M], what they are divided by then.
  """
  found = {}
  for i, name in enumerate(f"member_{i}" for i in range(len(params))):
    head = params[name]["head_out"]
    head = {
      "kernel": head["kernel"] / std[i],
      "bias": (head["bias"] - mean[i]) / std[i],
    }
    found[name] = {**params[name], "head_out": head}
  return found


class _Member(nn.Module):
  """One network of the ensemble."""

  config: LatentRewardConfig

  @nn.compact
  def __call__(
    self, x0: Array, text: Array | None, text_mask: Array | None
  ) -> Array:
    config = self.config
    if x0.ndim != 5:
      raise ValueError(
        f"latents have shape {x0.shape}; the latent reward model needs "
        "[B, T, H, W, C]"
      )
    prompt = None
    if config.text_conditioned:
      if text is None:
        raise ValueError(
          "the latent reward model is text-conditioned and got no text; pass "
          "text [B, S, D] or set text_conditioned=False"
        )
      prompt = nn.Dense(config.width, name="text_in")(
        _pool_text(text, text_mask)
      )
      prompt = nn.gelu(prompt)

    dtype = jnp.dtype(config.dtype)
    x = _Perceptron(config.width, dtype, name="stem_0")(x0.astype(dtype))
    x = x + _Perceptron(config.width, dtype, name="stem_1")(nn.gelu(x))
    for i in range(config.depth):
      if i:
        x = _halve(x, time=config.kind == "video")
      x = _Block(config, name=f"block_{i}")(x, prompt)

    features = jnp.mean(nn.gelu(x.astype(jnp.float32)), axis=(2, 3))
    rows = features.reshape(-1, config.width)
    rows = nn.gelu(nn.Dense(config.width, name="head_in")(rows))
    rewards = nn.Dense(1, name="head_out")(rows)
    return jnp.mean(rewards.reshape(features.shape[:2]), axis=1)


class _Perceptron(nn.Module):
  """Two linear layers at every latent position."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # as rows: XLA's CPU backend is slow on batched matrix products
    rows = x.reshape(-1, x.shape[-1])
    rows = nn.Dense(2 * self.features, dtype=self.dtype, name="up")(rows)
    rows = nn.Dense(self.features, dtype=self.dtype, name="down")(nn.gelu(rows))
    return rows.reshape(*x.shape[:-1], self.features)


class _Block(nn.Module):
  """Residual: over space, modulated by the prompt, then over time.

  Image models have a linear layer over channels where video models have the
  convolution over time. Both are 2-D convolutions with the remaining axes
  folded away: three times as fast on a CPU as 3-D ones.
  """

  config: LatentRewardConfig

  @nn.compact
  def __call__(self, x: Array, prompt: Array | None) -> Array:
    width, dtype = self.config.width, x.dtype
    batch, frames, height, columns, _ = x.shape
    h = nn.gelu(x).reshape(-1, height, columns, width)
    h = nn.Conv(width, (3, 3), dtype=dtype, name="space")(h).reshape(x.shape)
    if prompt is not None:
      film = nn.Dense(2 * width, name="film")(prompt).astype(dtype)
      scale, shift = jnp.split(film[:, None, None, None], 2, axis=-1)
      h = h * (1 + scale) + shift
    h = nn.gelu(h)
    if self.config.kind == "video":
      h = h.reshape(batch, frames, -1, width)
      h = nn.Conv(width, (3, 1), dtype=dtype, name="time")(h)
    else:
      h = nn.Dense(width, dtype=dtype, name="mix")(h.reshape(-1, width))
    return x + h.reshape(x.shape)


def _pool_text(text: Array, mask: Array | None) -> Array:
  """Mean [B, D] of the tokens that count, brought to unit root mean square."""
  text = text.astype(jnp.float32)
  if mask is None:
    mask = jnp.ones(text.shape[:2], bool)
  # `where`, not a product: what padding holds may be anything, even NaN
  total = jnp.sum(jnp.where(mask[..., None], text, 0.0), axis=1)
  count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
  mean = total / jnp.maximum(count, 1.0)
  power = jnp.mean(mean**2, axis=-1, keepdims=True)
  return mean / jnp.sqrt(power + 1e-6)


def _halve(x: Array, time: bool) -> Array:
  """Averages pairs along the long axes among H, W and, for `time`, T."""
  window = tuple(
    2 if free and size >= _HALVE_FROM else 1
    for free, size in zip((time, True, True), x.shape[1:4], strict=True)
  )
  if window == (1, 1, 1):
    return x
  return nn.avg_pool(
    x, window, strides=window, padding="SAME", count_include_pad=False
  )
