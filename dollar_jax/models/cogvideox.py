"""The CogVideoX text-to-video transformer (arXiv 2408.06072) in Linen.

Same numerics as diffusers' `CogVideoXTransformer3DModel`: text and video tokens
attend to each other in one sequence, each normalised and modulated by the time
with its own scales ("expert" adaptive norm), queries and keys layer-normed a
head. Positions are sine waves added to the tokens (2B) or rotary (5B, 1.5).
Norms, modulation and time embedding stay in float32 whatever `dtype` is.
"""

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dollar_jax.models.attention import attention
from dollar_jax.models.blocks import (
  BLOCK_INPUT,
  repeat_blocks,
  to_tokens,
  to_video,
  token_grid,
)
from dollar_jax.models.configs import CogVideoXConfig
from dollar_jax.models.layers import (
  MLP,
  Dense,
  LayerNorm,
  sinusoidal_embedding,
)
from dollar_jax.models.rope import cogvideox_rotary, rotate, sine_positions
from dollar_jax.parallel.context import fill_tokens
from dollar_jax.parallel.rules import constrain
from dollar_jax.typing import Array


class Attention(nn.Module):
  """Multi-head attention of all tokens to all."""

  config: CogVideoXConfig

  @nn.compact
  def __call__(
    self, x: Array, rotary: tuple[Array, Array] | None, length: int
  ) -> Array:
    """Attends within `x [B, S + L, D]`, to the first `length` tokens."""
    c = self.config
    dtype = jnp.dtype(c.dtype)

    def project(name: str) -> Array:
      layer = Dense(
        c.width, ("embed", "heads"), dtype, c.attention_bias, name=name
      )
      return einops.rearrange(
        layer(x), "b l (n k) -> b l n k", n=c.num_attention_heads
      )

    query = LayerNorm(1e-6, name="norm_q")(project("to_q")).astype(dtype)
    key = LayerNorm(1e-6, name="norm_k")(project("to_k")).astype(dtype)
    value = project("to_v")
    if rotary is not None:
      query, key = rotate(query, *rotary), rotate(key, *rotary)
    out = attention(query, key, value, c.attention, c.context, length=length)
    out = checkpoint_name(out, "attention")
    out = einops.rearrange(out, "b l n k -> b l (n k)")
    return Dense(c.width, ("heads", "embed"), dtype, name="to_out")(out)


class ExpertNorm(nn.Module):
  """LayerNorm, scaled and shifted by the time, for text and video apart."""

  config: CogVideoXConfig

  @nn.compact
  def __call__(
    self, x: Array, is_text: Array, time: Array
  ) -> tuple[Array, Array]:
    """Normalises `x [B, S + L, D]` given `time [B, E]`.

    Args:
      x: tokens.
      is_text: bool [1, S + L, 1].
      time: the time embedding.

    Returns:
      (normalised [B, S + L, D], gate [B, S + L, D]), float32 both.
    """
    c = self.config
    table = Dense(6 * c.width, name="linear")(nn.silu(time))[:, None]
    parts = jnp.split(table, 6, axis=-1)  # each [B, 1, D]; video first
    shift, scale, gate = (
      jnp.where(is_text, parts[i + 3], parts[i]) for i in range(3)
    )
    x = LayerNorm(c.norm_eps, name="norm")(x)
    return x * (1.0 + scale) + shift, gate


class Block(nn.Module):
  """Joint attention and feed-forward, both time-modulated."""

  config: CogVideoXConfig

  @nn.compact
  def __call__(
    self, x: Array, is_text: Array, time: Array, rotary: tuple | None
  ) -> tuple[Array, None]:
    """Maps tokens [B, S + L, D]; returns what `nn.scan` wants.

    Behind as many tokens as `is_text` tells of may come some that fill up.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    length, is_text = is_text.shape[1], fill_tokens(is_text)
    x = checkpoint_name(x, BLOCK_INPUT)
    h, gate = ExpertNorm(c, name="norm1")(x, is_text, time)
    h = Attention(c, name="attn1")(h.astype(dtype), rotary, length)
    x = (x + gate * h).astype(dtype)
    h, gate = ExpertNorm(c, name="norm2")(x, is_text, time)
    h = MLP(4 * c.width, c.width, "gelu", dtype, name="ff")(h.astype(dtype))
    x = (x + gate * h).astype(dtype)
    return constrain(x, ("batch", "tokens", "embed_act")), None


class CogVideoXTransformer(nn.Module):
  """Output of a noised video latent, given time and text."""

  config: CogVideoXConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    clock: Array,
    text: Array,
    text_mask: Array | None = None,
  ) -> Array:
    """Predicts v (or whatever its scheduler says).

    Args:
      x: [B, T, H, W, C] noised latents.
      clock: [B] float32 times in the network's own units, 0 to 999.
      text: [B, S, text_embed_dim].
      text_mask: not looked at: CogVideoX attends to the padding, too.

    Returns:
      [B, T, H, W, out_channels] float32.

    Raises:
      ValueError: if the latent does not divide into patches, or its channels
        are not the config's.
    """
    del text_mask
    c = self.config
    dtype = jnp.dtype(c.dtype)
    grid = token_grid(x.shape, c.patch, c.in_channels)
    words = text.shape[1]

    h = Dense(
      c.width, ("patch", "embed"), dtype, c.has_patch_bias, name="patch_embed"
    )(to_tokens(x, c.patch))
    rotary = None
    if c.use_rotary_positional_embeddings:
      rotary = cogvideox_rotary(
        grid,
        c.attention_head_dim,
        (c.sample_height // c.patch_size, c.sample_width // c.patch_size),
        stretch=c.patch_size_t is None,
      )
    else:
      scales = c.temporal_interpolation_scale, c.spatial_interpolation_scale
      h = h + sine_positions(grid, c.width, *scales).astype(dtype)
    text = Dense(c.width, ("text", "embed"), dtype, name="text_proj")(text)
    h = jnp.concatenate([text, h], axis=1)
    end = h.shape[1]
    is_text = (jnp.arange(end) < words)[None, :, None]
    h = constrain(fill_tokens(h), ("batch", "tokens", "embed_act"))
    if rotary is not None:
      # the text has no position, nor has what fills up: they are turned by
      # nothing
      around = (words, h.shape[1] - end), (0, 0)
      rotary = (
        np.pad(rotary[0], around, constant_values=1.0),
        np.pad(rotary[1], around),
      )

    wave, size = sinusoidal_embedding(clock, c.width), c.time_embed_dim
    time = MLP(size, size, "silu", name="time_embedder")(wave)
    h = repeat_blocks(self, Block, h, is_text, time, rotary)
    h = LayerNorm(c.norm_eps, name="norm_final")(h)[:, words:end]

    table = Dense(2 * c.width, name="norm_out_linear")(nn.silu(time))[:, None]
    shift, scale = jnp.split(table, 2, axis=-1)
    h = LayerNorm(c.norm_eps, name="norm_out")(h) * (1.0 + scale) + shift
    out = c.out_channels * c.patch[0] * c.patch[1] * c.patch[2]
    h = Dense(out, ("embed", "patch"), dtype, name="proj_out")(h.astype(dtype))
    return to_video(h, grid, c.patch).astype(jnp.float32)
