"""The Wan video diffusion transformer (arXiv 2503.20314) in Linen.

Same numerics as diffusers' `WanTransformer3DModel`: tokens of space-time
patches, 3-D rotary self-attention with RMS-normed queries and keys across
heads, cross-attention to the text, and to an image where the model has one,
modulation by six tables a block. Norms, modulation and time embedding stay in
float32 whatever `dtype` is.
"""

import functools
import math

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dollar_jax.models.attention import attention
from dollar_jax.models.blocks import (
  BLOCK_INPUT,
  repeat_blocks,
  to_tokens,
  to_video,
  token_grid,
)
from dollar_jax.models.configs import WanConfig
from dollar_jax.models.layers import (
  MLP,
  Dense,
  LayerNorm,
  RMSNorm,
  layer_norm,
  sinusoidal_embedding,
)
from dollar_jax.models.parameters import parameter
from dollar_jax.models.rope import rotate, wan_rotary
from dollar_jax.parallel.rules import constrain
from dollar_jax.typing import Array

IMAGE_EPS = 1e-5
"""Epsilon of the norms around the image's projection."""


class ImageEmbedding(nn.Module):
  """Image embeddings [B, M, image_dim] to the width of the model."""

  config: WanConfig

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Maps [B, M, image_dim] to [B, M, D]."""
    c = self.config
    dtype = jnp.dtype(c.dtype)
    if c.pos_embed_seq_len is not None:
      image = image + parameter(
        self,
        "pos_embed",
        nn.initializers.zeros,
        (c.pos_embed_seq_len, c.image_dim),
        (None, "embed"),
      )
    h = LayerNorm(IMAGE_EPS, name="norm1")(image)
    h = MLP(c.image_dim, c.width, "gelu_erf", dtype, name="ff")(h)
    return LayerNorm(IMAGE_EPS, name="norm2")(h).astype(dtype)


class Attention(nn.Module):
  """Multi-head attention, self or cross, with RMS-normed query and key."""

  config: WanConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    context: Array,
    rotary: tuple[Array, Array] | None = None,
    image: Array | None = None,
  ) -> Array:
    """Attends from `x [B, L, D]` to `context [B, S, D]` and `image [B, M, D]`.

    The image has keys and values of its own, and its own softmax; what is
    found in it is added.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)

    def project(name: str, source: Array) -> Array:
      return Dense(c.width, ("embed", "heads"), dtype, name=name)(source)

    def heads(y: Array) -> Array:
      return einops.rearrange(
        y, "b l (n k) -> b l n k", n=c.num_attention_heads
      )

    query = heads(RMSNorm(c.eps, name="norm_q")(project("to_q", x)))
    key = heads(RMSNorm(c.eps, name="norm_k")(project("to_k", context)))
    value = heads(project("to_v", context))
    if rotary is not None:
      query, key = rotate(query, *rotary), rotate(key, *rotary)
    attend = functools.partial(
      attention, kernel=c.attention, context=c.context, cross=rotary is None
    )
    out = attend(query, key, value)
    if image is not None:
      norm = RMSNorm(c.eps, name="norm_added_k")
      key = heads(norm(project("add_k_proj", image)))
      out += attend(query, key, heads(project("add_v_proj", image)))
    out = checkpoint_name(out, "attention")
    out = einops.rearrange(out, "b l n k -> b l (n k)")
    return Dense(c.width, ("heads", "embed"), dtype, name="to_out")(out)


def _modulation_table(module: nn.Module, rows: int) -> Array:
  """A module's own part of the modulation [rows, D]."""
  width = module.config.width
  init = nn.initializers.normal(width**-0.5)
  shape, axes = (rows, width), (None, "norm")
  return parameter(module, "scale_shift_table", init, shape, axes)


class Block(nn.Module):
  """Self-attention, cross-attention and feed-forward, time-modulated."""

  config: WanConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    text: Array,
    image: Array | None,
    modulation: Array,
    rotary: tuple[Array, Array],
  ) -> tuple[Array, None]:
    """Maps tokens `x [B, L, D]`.

    Args:
      x: [B, L, D].
      text: [B, S, D] projected text.
      image: [B, M, D] projected image embeddings, or None.
      modulation: [B, 1 or L, 6, D] float32, from the time.
      rotary: (cos, sin), each [L, K / 2].

    Returns:
      ([B, L, D], None), the form `nn.scan` wants.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    x = checkpoint_name(x, BLOCK_INPUT)
    table = _modulation_table(self, 6)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.unstack(
      table + modulation, axis=2
    )  # each [B, 1 or L, D]

    h = (layer_norm(x, c.eps) * (1.0 + scale_a) + shift_a).astype(dtype)
    h = Attention(c, name="attn1")(h, h, rotary)
    x = (x.astype(jnp.float32) + h * gate_a).astype(dtype)

    h = LayerNorm(c.eps, name="norm2")(x) if c.cross_attn_norm else x
    x = x + Attention(c, name="attn2")(h.astype(dtype), text, image=image)

    h = (layer_norm(x, c.eps) * (1.0 + scale_f) + shift_f).astype(dtype)
    h = MLP(c.ffn_dim, c.width, "gelu", dtype, name="ffn")(h)
    x = (x.astype(jnp.float32) + h.astype(jnp.float32) * gate_f).astype(dtype)
    x = constrain(x, ("batch", "tokens", "embed_act"))
    return x, None


class WanTransformer(nn.Module):
  """Velocity of a noised video latent, given time and text."""

  config: WanConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    clock: Array,
    text: Array,
    text_mask: Array | None = None,
    image: Array | None = None,
  ) -> Array:
    """Predicts the flow velocity.

    Args:
      x: [B, T, H, W, C] noised latents; an image-to-video model has the
        mask and latents of its image among the channels.
      clock: [B] float32 times in the network's own units, 1000 t; or
        [B, L], one a token, where a part of the video is given (Wan 2.2 5B).
      text: [B, S, text_dim].
      text_mask: [B, S] True where there is a word; the rest is set to zero,
        as Wan's pipeline pads. Attention itself is not masked.
      image: [B, M, image_dim] embeddings, where the config has `image_dim`.

    Returns:
      [B, T, H, W, out_channels] float32.

    Raises:
      ValueError: if the latent does not divide into patches, or its channels
        are not the config's; if an image is given to a model that takes
        none, or lacks where it takes one.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    if (image is None) != (c.image_dim is None):
      given = "no image" if image is None else f"an image {image.shape}"
      raise ValueError(
        f"this transformer has image_dim={c.image_dim} and was given {given}"
      )
    grid = token_grid(x.shape, c.patch_size, c.in_channels)
    if text_mask is not None:
      text = jnp.where(text_mask[..., None], text, 0.0)

    h = to_tokens(x, c.patch_size)
    h = Dense(c.width, ("patch", "embed"), dtype, name="patch_embedding")(h)

    wave = sinusoidal_embedding(clock.reshape(x.shape[0], -1), c.freq_dim)
    time = MLP(c.width, c.width, "silu", name="time_embedder")(wave)
    modulation = Dense(6 * c.width, name="time_proj")(nn.silu(time))
    modulation = modulation.reshape(*time.shape[:2], 6, c.width)
    if image is not None:
      image = ImageEmbedding(c, name="image_embedder")(image)
    text = MLP(c.width, c.width, "gelu", dtype, name="text_embedder")(text)
    rotary = wan_rotary(grid, c.attention_head_dim)
    h = repeat_blocks(self, Block, h, text, image, modulation, rotary)

    table = _modulation_table(self, 2)
    shift, scale = jnp.unstack(table + time[:, :, None], axis=2)
    h = (layer_norm(h, c.eps) * (1.0 + scale) + shift).astype(dtype)
    out = c.out_channels * math.prod(c.patch_size)
    h = Dense(out, ("embed", "patch"), dtype, name="proj_out")(h)
    return to_video(h, grid, c.patch_size).astype(jnp.float32)
