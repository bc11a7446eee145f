"""The Wan text-to-video diffusion transformer (arXiv 2503.20314) in Linen.

Same numerics as diffusers' `WanTransformer3DModel`: tokens of space-time
patches, 3-D rotary self-attention with RMS-normed queries and keys across
heads, cross-attention to the text, modulation by six tables a block. Norms,
modulation and time embedding stay in float32 whatever `dtype` is.
"""

import dataclasses
import math

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dollar_jax.models.attention import attention
from dollar_jax.models.blocks import (
  check_remat,
  repeat_blocks,
  to_tokens,
  to_video,
  token_grid,
)
from dollar_jax.models.layers import (
  MLP,
  Dense,
  LayerNorm,
  RMSNorm,
  layer_norm,
  sinusoidal_embedding,
)
from dollar_jax.models.rope import rotate, wan_rotary
from dollar_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class WanConfig:
  """Size of a Wan transformer; names are those of diffusers' config.json.

  Attributes:
    patch_size: latent frames, rows and columns a token covers.
    num_attention_heads: N.
    attention_head_dim: K, even; the width is N * K.
    in_channels: latent channels C in.
    out_channels: latent channels out.
    text_dim: width of the text embeddings.
    freq_dim: width of the sinusoidal time embedding.
    ffn_dim: width of the feed-forward layers.
    num_layers: number of blocks.
    cross_attn_norm: whether the cross-attention's input norm has weights
      (True) or is absent (False).
    eps: epsilon of every norm.
    dtype: compute type, "float32" or "bfloat16" (ours).
    remat: "none" or a name in `blocks.REMAT_POLICIES` (ours).
    scan: whether blocks run under `nn.scan`, stacked parameters (ours).
  """

  patch_size: tuple[int, int, int] = (1, 2, 2)
  num_attention_heads: int = 12
  attention_head_dim: int = 128
  in_channels: int = 16
  out_channels: int = 16
  text_dim: int = 4096
  freq_dim: int = 256
  ffn_dim: int = 8960
  num_layers: int = 30
  cross_attn_norm: bool = True
  eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True

  def __post_init__(self):
    if self.attention_head_dim % 2 or self.attention_head_dim < 6:
      raise ValueError(
        f"attention_head_dim is {self.attention_head_dim}; rotary positions "
        "need an even number of at least 6"
      )
    check_remat(self.remat)

  @property
  def width(self) -> int:
    """Width of the residual stream, N * K."""
    return self.num_attention_heads * self.attention_head_dim


class Attention(nn.Module):
  """Multi-head attention, self or cross, with RMS-normed query and key."""

  config: WanConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    context: Array,
    rotary: tuple[Array, Array] | None = None,
  ) -> Array:
    """Attends from `x [B, L, D]` to `context [B, M, D]`."""
    c = self.config
    dtype = jnp.dtype(c.dtype)

    def project(name: str, source: Array) -> Array:
      return Dense(c.width, ("embed", "heads"), dtype, name=name)(source)

    query = RMSNorm(c.eps, name="norm_q")(project("to_q", x))
    key = RMSNorm(c.eps, name="norm_k")(project("to_k", context))
    value = project("to_v", context)
    query, key, value = (
      einops.rearrange(y, "b l (n k) -> b l n k", n=c.num_attention_heads)
      for y in (query, key, value)
    )
    if rotary is not None:
      query, key = rotate(query, *rotary), rotate(key, *rotary)
    out = attention(query, key, value)
    out = checkpoint_name(out, "attention")
    out = einops.rearrange(out, "b l n k -> b l (n k)")
    return Dense(c.width, ("heads", "embed"), dtype, name="to_out")(out)


class Block(nn.Module):
  """Self-attention, cross-attention and feed-forward, time-modulated."""

  config: WanConfig

  @nn.compact
  def __call__(
    self, x: Array, text: Array, modulation: Array, rotary: tuple[Array, Array]
  ) -> tuple[Array, None]:
    """Maps tokens `x [B, L, D]`.

    Args:
      x: [B, L, D].
      text: [B, S, D] projected text.
      modulation: [B, 6, D] float32, from the time.
      rotary: (cos, sin), each [L, K / 2].

    Returns:
      ([B, L, D], None), the form `nn.scan` wants.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    table = self.param(
      "scale_shift_table",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.width**-0.5), (None, "norm")
      ),
      (6, c.width),
    )
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(
      table + modulation, 6, axis=1
    )  # each [B, 1, D]

    h = (layer_norm(x, c.eps) * (1.0 + scale_a) + shift_a).astype(dtype)
    h = Attention(c, name="attn1")(h, h, rotary)
    x = (x.astype(jnp.float32) + h * gate_a).astype(dtype)

    h = LayerNorm(c.eps, name="norm2")(x) if c.cross_attn_norm else x
    x = x + Attention(c, name="attn2")(h.astype(dtype), text)

    h = (layer_norm(x, c.eps) * (1.0 + scale_f) + shift_f).astype(dtype)
    h = MLP(c.ffn_dim, c.width, "gelu", dtype, name="ffn")(h)
    x = (x.astype(jnp.float32) + h.astype(jnp.float32) * gate_f).astype(dtype)
    x = nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
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
  ) -> Array:
    """Predicts the flow velocity.

    Args:
      x: [B, T, H, W, C] noised latents.
      clock: [B] float32 times in the network's own units, 1000 t.
      text: [B, S, text_dim].
      text_mask: [B, S] True where there is a word; the rest is set to zero,
        as Wan's pipeline pads. Attention itself is not masked.

    Returns:
      [B, T, H, W, out_channels] float32.

    Raises:
      ValueError: if the latent does not divide into patches, or its channels
        are not the config's.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    grid = token_grid(x.shape, c.patch_size, c.in_channels)
    if text_mask is not None:
      text = jnp.where(text_mask[..., None], text, 0.0)

    h = to_tokens(x, c.patch_size)
    h = Dense(c.width, ("patch", "embed"), dtype, name="patch_embedding")(h)

    wave = sinusoidal_embedding(clock, c.freq_dim)
    time = MLP(c.width, c.width, "silu", name="time_embedder")(wave)
    modulation = Dense(6 * c.width, name="time_proj")(nn.silu(time))
    modulation = modulation.reshape(-1, 6, c.width)
    text = MLP(c.width, c.width, "gelu", dtype, name="text_embedder")(text)
    rotary = wan_rotary(grid, c.attention_head_dim)
    h = repeat_blocks(Block, c, h, text, modulation, rotary)

    table = self.param(
      "scale_shift_table",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.width**-0.5), (None, "norm")
      ),
      (2, c.width),
    )
    shift, scale = jnp.split(table + time[:, None], 2, axis=1)
    h = (layer_norm(h, c.eps) * (1.0 + scale) + shift).astype(dtype)
    out = c.out_channels * math.prod(c.patch_size)
    h = Dense(out, ("embed", "patch"), dtype, name="proj_out")(h)
    return to_video(h, grid, c.patch_size).astype(jnp.float32)
