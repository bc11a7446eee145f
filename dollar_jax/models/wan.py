"""The Wan video diffusion transformer (arXiv 2503.20314) in Linen.

Same numerics as diffusers' `WanTransformer3DModel`: tokens of space-time
patches, 3-D rotary self-attention with RMS-normed queries and keys across
heads, cross-attention to the text, and to an image where the model has one,
modulation by six tables a block. Norms, modulation and time embedding stay in
float32 whatever `dtype` is.
"""

import dataclasses
import functools
import math

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dollar_jax.models.attention import attention, check_names
from dollar_jax.models.blocks import (
  BLOCK_INPUT,
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
from dollar_jax.parallel.rules import constrain
from dollar_jax.typing import Array

IMAGE_EPS = 1e-5
"""Epsilon of the norms around the image's projection."""


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
    image_dim: width of the image embeddings; None takes no image.
    added_kv_proj_dim: width of the embedded image in each block, N * K; None
      without an image.
    pos_embed_seq_len: image embeddings that have learnt positions, those of
      first and last frame; None learns none.
    dtype: compute type, "float32" or "bfloat16" (ours).
    remat: "none" or a name in `blocks.REMAT_POLICIES` (ours).
    scan: whether blocks run under `nn.scan`, stacked parameters (ours).
    attention: what carries attention out, one of `attention.KERNELS` (ours).
    context: how tokens on several devices meet, one of `attention.CONTEXTS`
      (ours).
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
  image_dim: int | None = None
  added_kv_proj_dim: int | None = None
  pos_embed_seq_len: int | None = None
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True
  attention: str = "auto"
  context: str = "auto"

  def __post_init__(self):
    if len(self.patch_size) != 3:
      raise ValueError(
        f"patch_size is {self.patch_size}; give frames, rows and columns"
      )
    if self.attention_head_dim % 2 or self.attention_head_dim < 6:
      raise ValueError(
        f"attention_head_dim is {self.attention_head_dim}; rotary positions "
        "need an even number of at least 6"
      )
    added = None if self.image_dim is None else self.width
    if self.added_kv_proj_dim != added:
      raise ValueError(
        f"added_kv_proj_dim is {self.added_kv_proj_dim}; with image_dim "
        f"{self.image_dim} it must be {added}"
      )
    check_remat(self.remat)
    check_names(self.attention, self.context)

  @property
  def width(self) -> int:
    """Width of the residual stream, N * K."""
    return self.num_attention_heads * self.attention_head_dim

  @property
  def smallest_inputs(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the least that the transformer can be called with."""
    shapes = {
      "x": (1, *self.patch_size, self.in_channels),
      "clock": (1,),
      "text": (1, 1, self.text_dim),
    }
    if self.image_dim is not None:
      shapes["image"] = (1, self.pos_embed_seq_len or 1, self.image_dim)
    return shapes


class ImageEmbedding(nn.Module):
  """Image embeddings [B, M, image_dim] to the width of the model."""

  config: WanConfig

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Maps [B, M, image_dim] to [B, M, D]."""
    c = self.config
    dtype = jnp.dtype(c.dtype)
    if c.pos_embed_seq_len is not None:
      axes = (None, "embed")
      table = self.param(
        "pos_embed",
        nn.with_logical_partitioning(nn.initializers.zeros, axes),
        (c.pos_embed_seq_len, c.image_dim),
      )
      image = image + table
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
    table = self.param(
      "scale_shift_table",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.width**-0.5), (None, "norm")
      ),
      (6, c.width),
    )
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
    h = repeat_blocks(Block, c, h, text, image, modulation, rotary)

    table = self.param(
      "scale_shift_table",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.width**-0.5), (None, "norm")
      ),
      (2, c.width),
    )
    shift, scale = jnp.unstack(table + time[:, :, None], axis=2)
    h = (layer_norm(h, c.eps) * (1.0 + scale) + shift).astype(dtype)
    out = c.out_channels * math.prod(c.patch_size)
    h = Dense(out, ("embed", "patch"), dtype, name="proj_out")(h)
    return to_video(h, grid, c.patch_size).astype(jnp.float32)
