"""The Wan video autoencoders (2.1 and 2.2) in Linen, chunk by chunk.

Same numerics as diffusers' `AutoencoderKLWan`. Every convolution is causal in
time, so a clip is coded in chunks (its first frame, then one latent frame at a
time) while each convolution keeps the last frames it saw: memory is that of one
chunk however long the clip is, and the result is that of the whole clip.
"""

import dataclasses

import einops
import flax.linen as nn
import jax.numpy as jnp

from dollar_jax.models.causal import (
  CausalConv,
  Conv,
  Memory,
  Stream,
  in_chunks,
  parameter_shapes,
)
from dollar_jax.models.layers import Dense
from dollar_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
  """Size of a Wan autoencoder; names are those of diffusers' config.json.

  Attributes:
    base_dim: narrowest width of the encoder.
    decoder_base_dim: that of the decoder; None is `base_dim`.
    z_dim: latent channels.
    dim_mult: width of each resolution, in units of the narrowest.
    num_res_blocks: residual blocks at each resolution.
    temperal_downsample: which changes of resolution halve time, too
      (diffusers' spelling).
    latents_mean: mean of each latent channel.
    latents_std: its deviation.
    is_residual: whether resolutions have shortcuts (2.2).
    in_channels: channels of the encoder's input, a patch of pixels.
    out_channels: channels of the decoder's output.
    patch_size: pixels a side of a patch (2.2); None is one.
    scale_factor_spatial: pixels a side of a latent, as diffusers' pipeline
      reads it; here it follows from the rest.
    scale_factor_temporal: frames of a latent, likewise.
  """

  base_dim: int = 96
  decoder_base_dim: int | None = None
  z_dim: int = 16
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  temperal_downsample: tuple[bool, ...] = (False, True, True)
  latents_mean: tuple[float, ...] = (0.0,) * 16
  latents_std: tuple[float, ...] = (1.0,) * 16
  is_residual: bool = False
  in_channels: int = 3
  out_channels: int = 3
  patch_size: int | None = None
  scale_factor_spatial: int | None = 8
  scale_factor_temporal: int | None = 4

  def __post_init__(self):
    counts = {len(self.latents_mean), len(self.latents_std), self.z_dim}
    if len(counts) > 1:
      raise ValueError(
        f"latents_mean has {len(self.latents_mean)} and latents_std "
        f"{len(self.latents_std)} numbers; z_dim {self.z_dim} needs as many"
      )

  @property
  def frames_per_latent(self) -> int:
    """Frames that a latent frame other than the first one holds."""
    return 2 ** sum(self.temperal_downsample)

  @property
  def pixels_per_latent(self) -> int:
    """Pixels a side that a latent covers."""
    return 2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1)

  @property
  def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each latent channel."""
    return self.latents_mean, self.latents_std

  def codes(self, frames: int) -> bool:
    """Whether clips of so many frames can be coded."""
    return frames % self.frames_per_latent == 1


class ChannelNorm(nn.Module):
  """Scales each position's channels to unit RMS, then by a weight."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis; keeps shape and type."""
    weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    norm = jnp.linalg.norm(x32, axis=-1, keepdims=True)
    unit = (x32 / jnp.maximum(norm, 1e-12)).astype(x.dtype)
    return unit * x.shape[-1] ** 0.5 * weight.astype(x.dtype)


class ResidualBlock(nn.Module):
  """Two causal convolutions and a shortcut."""

  features: int

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to [B, T, H, W, features]."""
    short = x
    if x.shape[-1] != self.features:
      short = Dense(self.features, dtype=x.dtype, name="conv_shortcut")(x)
    h = nn.silu(ChannelNorm(name="norm1")(x))
    h = CausalConv(self.features, name="conv1")(h, stream)
    h = nn.silu(ChannelNorm(name="norm2")(h))
    return short + CausalConv(self.features, name="conv2")(h, stream)


class FrameAttention(nn.Module):
  """Attention of one head within each frame."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, T, H, W, C] to the same shape."""
    width = x.shape[-1]
    h = ChannelNorm(name="norm")(x)
    h = Dense(3 * width, dtype=x.dtype, name="to_qkv")(h)
    h = einops.rearrange(h, "b t h w c -> (b t) (h w) c")
    query, key, value = jnp.split(h, 3, axis=-1)
    logits = jnp.einsum(
      "blc,bmc->blm", query, key, preferred_element_type=jnp.float32
    )
    weights = nn.softmax(logits * width**-0.5).astype(x.dtype)
    h = jnp.einsum("blm,bmc->blc", weights, value).reshape(x.shape)
    return x + Dense(width, dtype=x.dtype, name="proj")(h)


class MiddleBlock(nn.Module):
  """Residual block, attention, residual block."""

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to the same shape."""
    x = ResidualBlock(x.shape[-1], name="resnet_0")(x, stream)
    x = FrameAttention(name="attention_0")(x)
    return ResidualBlock(x.shape[-1], name="resnet_1")(x, stream)


class Downsample(nn.Module):
  """Halves height and width, and time if told to; the first frame stays."""

  time: bool

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to [B, T or T / 2, H / 2, W / 2, C]."""
    width = x.shape[-1]
    x = Conv(width, (1, 3, 3), (1, 2, 2), ((0, 1), (0, 1)), name="resample")(x)
    if not self.time:
      return x
    conv = Conv(width, (3, 1, 1), (2, 1, 1), name="time_conv")
    if stream.first:
      stream.keep(x[:, -1:])
      if self.is_initializing():
        conv(jnp.concatenate([x] * 3, axis=1))
      return x
    return conv(stream.before(x, 1))


class Upsample(nn.Module):
  """Doubles height and width, and time if told to; the first frame stays."""

  features: int
  time: bool

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to [B, T or 2 T, 2 H, 2 W, features]."""
    if self.time:
      conv = CausalConv(2 * x.shape[-1], spatial=1, name="time_conv")
      if stream.first:  # time starts to count at the second latent frame
        conv.skip(x, stream)
        if self.is_initializing():
          conv(x, Stream(None))
      else:
        x = conv(x, stream)
        x = einops.rearrange(x, "b t h w (i c) -> b (t i) h w c", i=2)
    around, conv = ((1, 1), (1, 1)), (self.features, (1, 3, 3))
    return Conv(*conv, padding=around, enlarge=True, name="resample")(x)


def average_down(x: Array, features: int, time: int, space: int) -> Array:
  """Means of groups of neighbours and channels: a shortcut without weights."""
  missing = -x.shape[1] % time
  x = jnp.pad(x, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
  x = einops.rearrange(
    x,
    "b (t i) (h j) (w k) c -> b t h w (c i j k)",
    i=time,
    j=space,
    k=space,
  )
  return x.reshape(*x.shape[:-1], features, -1).mean(-1)


def duplicate_up(
  x: Array, features: int, time: int, space: int, first: bool
) -> Array:
  """Copies channels to neighbours: a shortcut without weights."""
  factor = time * space * space
  x = jnp.repeat(x, features * factor // x.shape[-1], axis=-1)
  x = einops.rearrange(
    x,
    "b t h w (c i j k) -> b (t i) (h j) (w k) c",
    i=time,
    j=space,
    k=space,
  )
  return x[:, time - 1 :] if first else x


class Encoder(nn.Module):
  """Pixels to the moments of a latent, for one chunk."""

  config: WanVAEConfig

  @nn.compact
  def __call__(self, x: Array, memory: Memory | None) -> tuple[Array, Memory]:
    """Encodes a chunk [B, T, H, W, C].

    Args:
      x: one frame if it is the first chunk, `frames_per_latent` after that.
      memory: what the chunk before left; None for the first.

    Returns:
      (mean and log variance [B, 1, h, w, 2 z_dim], the memory).
    """
    c, stream = self.config, Stream(memory)
    h = CausalConv(c.base_dim, name="conv_in")(x, stream)
    for i, factor in enumerate(c.dim_mult):
      width, down = factor * c.base_dim, i < len(c.dim_mult) - 1
      time, start = down and c.temperal_downsample[i], h
      for j in range(c.num_res_blocks):
        h = ResidualBlock(width, name=f"down_{i}_resnet_{j}")(h, stream)
      if down:
        h = Downsample(time, name=f"down_{i}_sample")(h, stream)
      if c.is_residual:
        h = h + average_down(start, width, 1 + time, 1 + down)
    h = MiddleBlock(name="mid_block")(h, stream)
    h = nn.silu(ChannelNorm(name="norm_out")(h))
    h = CausalConv(2 * c.z_dim, name="conv_out")(h, stream)
    h = Dense(2 * c.z_dim, dtype=h.dtype, name="quant_conv")(h)
    return h, stream.memory


class Decoder(nn.Module):
  """A latent frame to pixels."""

  config: WanVAEConfig

  @nn.compact
  def __call__(self, z: Array, memory: Memory | None) -> tuple[Array, Memory]:
    """Decodes a chunk, one latent frame [B, 1, h, w, z_dim].

    Args:
      z: the latent frame.
      memory: what the chunk before left; None for the first.

    Returns:
      ([B, T, H, W, out_channels], T being 1 for the first chunk and
      `frames_per_latent` after that; the memory).
    """
    c, stream = self.config, Stream(memory)
    base = c.decoder_base_dim or c.base_dim
    factors = c.dim_mult[::-1]
    h = Dense(c.z_dim, dtype=z.dtype, name="post_quant_conv")(z)
    h = CausalConv(factors[0] * base, name="conv_in")(h, stream)
    h = MiddleBlock(name="mid_block")(h, stream)
    for i, factor in enumerate(factors):
      width, up = factor * base, i < len(factors) - 1
      time, start = up and c.temperal_downsample[::-1][i], h
      for j in range(c.num_res_blocks + 1):
        h = ResidualBlock(width, name=f"up_{i}_resnet_{j}")(h, stream)
      if up:
        out = width if c.is_residual else width // 2
        h = Upsample(out, time, name=f"up_{i}_sample")(h, stream)
        if c.is_residual:
          h = h + duplicate_up(start, width, 1 + time, 2, stream.first)
    h = nn.silu(ChannelNorm(name="norm_out")(h))
    return CausalConv(c.out_channels, name="conv_out")(h, stream), stream.memory


def shapes(config: WanVAEConfig) -> Params:
  """The tree of both networks' parameters, as `jax.ShapeDtypeStruct`s."""
  side = 2 ** len(config.dim_mult)
  frame = (1, 1, side, side, config.in_channels)
  return {
    "encoder": parameter_shapes(Encoder(config), frame),
    "decoder": parameter_shapes(Decoder(config), (1, 1, 1, 1, config.z_dim)),
  }


def encode(config: WanVAEConfig, params: Params, frames: Array) -> Array:
  """Encodes clips to the means of their latents, as the network gives them.

  Args:
    config: the autoencoder.
    params: the encoder's parameters.
    frames: [B, F, H, W, 3] in [-1, 1], F = 1 + a multiple of
      `frames_per_latent`.

  Returns:
    [B, T, h, w, z_dim], not normalised.
  """
  step, side = config.frames_per_latent, config.patch_size or 1
  frames = einops.rearrange(
    frames, "b f (h j) (w k) c -> b f h w (c k j)", j=side, k=side
  )
  moments = in_chunks(Encoder(config), params, frames, 1, step)
  return moments[..., : config.z_dim]


def decode(config: WanVAEConfig, params: Params, latents: Array) -> Array:
  """Decodes latents as the network takes them, not normalised.

  Args:
    config: the autoencoder.
    params: the decoder's parameters.
    latents: [B, T, h, w, z_dim].

  Returns:
    [B, F, H, W, 3], clipped to [-1, 1], F = 1 + (T - 1) `frames_per_latent`.
  """
  side = config.patch_size or 1
  frames = in_chunks(Decoder(config), params, latents, 1, 1)
  frames = einops.rearrange(
    frames, "b f h w (c k j) -> b f (h j) (w k) c", j=side, k=side
  )
  return jnp.clip(frames, -1.0, 1.0)
