"""The CogVideoX video autoencoder in Linen, chunk by chunk.

Same numerics as diffusers' `AutoencoderKLCogVideoX`: causal convolutions, group
norms over a chunk (so the chunks are part of the model: 8 frames, or 2 latent
frames, what remains going with the first), and a decoder whose norms are scaled
and shifted by the latent.
"""

import dataclasses
import math

import einops
import flax.linen as nn
import jax
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
from dollar_jax.parallel.context import platform
from dollar_jax.typing import Array, Params

CHUNK = 2
"""Latent frames of a chunk."""


@dataclasses.dataclass(frozen=True)
class CogVideoXVAEConfig:
  """Size of a CogVideoX autoencoder; names are those of diffusers' config.json.

  Attributes:
    in_channels: colours in.
    out_channels: colours out.
    block_out_channels: width of each resolution.
    latent_channels: C of the latents.
    layers_per_block: residual blocks at each resolution; one more in the
      decoder.
    norm_eps: epsilon of the encoder's group norms.
    norm_num_groups: groups of channels of a group norm.
    temporal_compression_ratio: frames a latent frame holds, a power of two.
    scaling_factor: what latents are multiplied by.
  """

  in_channels: int = 3
  out_channels: int = 3
  block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
  latent_channels: int = 16
  layers_per_block: int = 3
  norm_eps: float = 1e-6
  norm_num_groups: int = 32
  temporal_compression_ratio: int = 4
  scaling_factor: float = 1.15258426

  @property
  def time_levels(self) -> int:
    """Changes of resolution that change time, too."""
    return int(math.log2(self.temporal_compression_ratio))

  @property
  def frames_per_latent(self) -> int:
    """Frames that a latent frame other than the first one holds."""
    return self.temporal_compression_ratio

  @property
  def pixels_per_latent(self) -> int:
    """Pixels a side that a latent covers."""
    return 2 ** (len(self.block_out_channels) - 1)

  @property
  def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each latent channel."""
    channels = self.latent_channels
    return (0.0,) * channels, (1.0 / self.scaling_factor,) * channels

  def codes(self, frames: int) -> bool:
    """Whether clips of so many frames can be coded."""
    chunk = CHUNK * self.temporal_compression_ratio
    return frames == 1 or (frames > 1 and frames % chunk in (0, 1))


class GroupNorm(nn.Module):
  """Norm over a chunk's positions and a group of channels, in float32."""

  groups: int
  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [B, T, H, W, C]; keeps shape and type."""
    weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    h = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)
    axes = (1, 2, 3, 5)
    h = h - jnp.mean(h, axes, keepdims=True)
    variance = jnp.mean(h**2, axes, keepdims=True)
    h = (h * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
    return (h * weight + bias).astype(x.dtype)


class Norm(nn.Module):
  """Group norm; with a latent, scaled and shifted by it at each position."""

  config: CogVideoXVAEConfig

  @nn.compact
  def __call__(self, x: Array, latent: Array | None) -> Array:
    """Normalises [B, T, H, W, C], given the chunk's latent or None."""
    c = self.config
    eps = c.norm_eps if latent is None else 1e-6
    h = GroupNorm(c.norm_num_groups, eps, name="norm_layer")(x)
    if latent is None:
      return h
    size, small = x.shape[1:4], platform() == "cpu"  # equal pixels once
    latent = latent if small else _nearest(latent, size)

    def linear(name: str) -> Array:
      y = Dense(x.shape[-1], dtype=x.dtype, name=name)(latent)
      return _nearest(y, size) if small else y

    return h * linear("conv_y") + linear("conv_b")


def _nearest(x: Array, size: tuple[int, ...]) -> Array:
  """Enlarges [B, t, h, w, C] to `size` by copies; a first frame apart."""
  frames, rows, columns = size
  if frames > 1 and frames % 2:
    first = _nearest(x[:, :1], (1, rows, columns))
    rest = _nearest(x[:, 1:], (frames - 1, rows, columns))
    return jnp.concatenate([first, rest], axis=1)
  for axis, length in enumerate(size, 1):
    x = jnp.repeat(x, length // x.shape[axis], axis=axis)
  return x


class ResidualBlock(nn.Module):
  """Two causal convolutions and a shortcut."""

  config: CogVideoXVAEConfig
  features: int

  @nn.compact
  def __call__(self, x: Array, stream: Stream, latent: Array | None) -> Array:
    """Maps [B, T, H, W, C] to [B, T, H, W, features]."""
    h = nn.silu(Norm(self.config, name="norm1")(x, latent))
    h = CausalConv(self.features, name="conv1")(h, stream)
    h = nn.silu(Norm(self.config, name="norm2")(h, latent))
    h = CausalConv(self.features, name="conv2")(h, stream)
    if x.shape[-1] != self.features:
      x = Dense(self.features, dtype=x.dtype, name="conv_shortcut")(x)
    return x + h


class Downsample(nn.Module):
  """Halves height and width, and time if told to; an odd first frame stays."""

  time: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, T, H, W, C] to [B, T or T / 2, H / 2, W / 2, C]."""
    if self.time:
      odd = x.shape[1] % 2
      pairs = einops.rearrange(x[:, odd:], "b (t i) h w c -> b t i h w c", i=2)
      x = jnp.concatenate([x[:, :odd], pairs.mean(2)], axis=1)
    padding = ((0, 1), (0, 1))
    conv = Conv(x.shape[-1], (1, 3, 3), (1, 2, 2), padding, name="conv")
    return conv(x)


class Upsample(nn.Module):
  """Doubles height and width, and time if told to; an odd first frame stays."""

  time: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, T, H, W, C] to [B, T or 2 T, 2 H, 2 W, C]."""
    frames, rows, columns = x.shape[1:4]
    if self.time and frames > 1:
      frames = 2 * frames - frames % 2
    large = platform() != "cpu"
    conv = Conv(
      x.shape[-1],
      (1, 3, 3),
      padding=((1, 1), (1, 1)),
      enlarge=not large,
      name="conv",
    )
    if large:
      return conv(_nearest(x, (frames, 2 * rows, 2 * columns)))
    x = conv(x)  # equal frames once
    return _nearest(x, (frames, *x.shape[2:4]))


class Encoder(nn.Module):
  """Pixels to the moments of a latent, for one chunk."""

  config: CogVideoXVAEConfig

  @nn.compact
  def __call__(self, x: Array, memory: Memory | None) -> tuple[Array, Memory]:
    """Encodes a chunk [B, F, H, W, in_channels].

    Args:
      x: the frames.
      memory: what the chunk before left; None for the first.

    Returns:
      (mean and log variance [B, T, h, w, 2 latent_channels], the memory).
    """
    c, stream = self.config, Stream(memory, repeat=True)
    h = CausalConv(c.block_out_channels[0], name="conv_in")(x, stream)
    for i, width in enumerate(c.block_out_channels):
      for j in range(c.layers_per_block):
        block = ResidualBlock(c, width, name=f"down_{i}_resnet_{j}")
        h = block(h, stream, None)
      if i < len(c.block_out_channels) - 1:
        h = Downsample(i < c.time_levels, name=f"down_{i}_sample")(h)
    for j in range(2):
      h = ResidualBlock(c, width, name=f"mid_resnet_{j}")(h, stream, None)
    h = nn.silu(GroupNorm(c.norm_num_groups, 1e-6, name="norm_out")(h))
    h = CausalConv(2 * c.latent_channels, name="conv_out")(h, stream)
    return h, stream.memory


class Decoder(nn.Module):
  """A chunk of latents to pixels."""

  config: CogVideoXVAEConfig

  @nn.compact
  def __call__(self, z: Array, memory: Memory | None) -> tuple[Array, Memory]:
    """Decodes a chunk [B, T, h, w, latent_channels].

    Args:
      z: the latents.
      memory: what the chunk before left; None for the first.

    Returns:
      ([B, F, H, W, out_channels], the memory).
    """
    c, stream = self.config, Stream(memory, repeat=True)
    widths = c.block_out_channels[::-1]
    h = CausalConv(widths[0], name="conv_in")(z, stream)
    for j in range(2):
      h = ResidualBlock(c, widths[0], name=f"mid_resnet_{j}")(h, stream, z)
    for i, width in enumerate(widths):
      for j in range(c.layers_per_block + 1):
        h = ResidualBlock(c, width, name=f"up_{i}_resnet_{j}")(h, stream, z)
      if i < len(widths) - 1:
        h = Upsample(i < c.time_levels, name=f"up_{i}_sample")(h)
    h = nn.silu(Norm(c, name="norm_out")(h, z))
    h = CausalConv(c.out_channels, name="conv_out")(h, stream)
    return h, stream.memory


def shapes(config: CogVideoXVAEConfig) -> Params:
  """The tree of both networks' parameters, as `jax.ShapeDtypeStruct`s."""
  side = 2 ** len(config.block_out_channels)
  frame = (1, 1, side, side, config.in_channels)
  return {
    "encoder": parameter_shapes(Encoder(config), frame),
    "decoder": parameter_shapes(
      Decoder(config), (1, 1, 1, 1, config.latent_channels)
    ),
  }


def _in_chunks(
  network: nn.Module, params: Params, x: Array, size: int
) -> Array:
  """Applies a network to chunks of `size` frames, the rest with the first."""
  later = max(x.shape[1] // size, 1) - 1
  return in_chunks(network, params, x, x.shape[1] - later * size, size)


def encode(config: CogVideoXVAEConfig, params: Params, frames: Array) -> Array:
  """Encodes clips to the means of their latents, not scaled.

  Args:
    config: the autoencoder.
    params: the encoder's parameters.
    frames: [B, F, H, W, 3] in [-1, 1]; F is 1, or a multiple of 8, or one
      more.

  Returns:
    [B, T, h, w, latent_channels].
  """
  size = CHUNK * config.temporal_compression_ratio
  moments = _in_chunks(Encoder(config), params, frames, size)
  return moments[..., : config.latent_channels]


def decode(config: CogVideoXVAEConfig, params: Params, latents: Array) -> Array:
  """Decodes latents that are not scaled.

  Args:
    config: the autoencoder.
    params: the decoder's parameters.
    latents: [B, T, h, w, latent_channels].

  Returns:
    [B, F, H, W, 3], about [-1, 1].
  """
  return _in_chunks(Decoder(config), params, latents, CHUNK)
