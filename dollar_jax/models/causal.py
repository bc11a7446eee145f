"""Causal convolutions of a clip that is coded chunk by chunk.

Each convolution keeps the last frames it saw, so that the chunks together give
what the whole clip would, in the memory of one chunk.
"""

from collections.abc import Iterator

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dollar_jax.typing import Array, Params

Memory = tuple[Array, ...]
"""What the convolutions of one network saw last, in the order they run."""


class Stream:
  """The memories of one chunk: handed out in order, and collected anew."""

  def __init__(self, memory: Memory | None, repeat: bool = False):
    """Starts a chunk.

    Args:
      memory: what the chunk before left; None before the first.
      repeat: whether copies of the first frame stand before it, or zeros.
    """
    self.first, self._repeat = memory is None, repeat
    self._old: Iterator[Array] = iter(memory or ())
    self._new: list[Array] = []

  def before(self, x: Array, frames: int) -> Array:
    """Puts what came before in front of `x`, and remembers its last frames.

    Args:
      x: [B, T, H, W, C], the chunk.
      frames: how many.

    Returns:
      [B, frames + T, H, W, C].
    """
    if self.first and self._repeat:
      past = jnp.repeat(x[:, :1], frames, axis=1)
    elif self.first:
      past = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
    else:
      past = next(self._old)
    joined = jnp.concatenate([past, x], axis=1)
    self.keep(joined[:, -frames:])
    return joined

  def keep(self, x: Array) -> None:
    """Remembers an array for the next chunk."""
    self._new.append(x)

  @property
  def memory(self) -> Memory:
    """What the next chunk needs."""
    return tuple(self._new)


class Conv(nn.Module):
  """A convolution over the axes before the last; pads what it is told to.

  Attributes:
    features: output channels.
    kernel: its size on each axis.
    strides: its stride on each axis.
    padding: (before, after) on each axis.
  """

  features: int
  kernel: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, ..., C] to [B, ..., features]."""
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (*self.kernel, x.shape[-1], self.features),
    )
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    axes = "THW"[-len(self.kernel) :]
    y = jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      self.strides,
      self.padding,
      dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    return y + bias.astype(x.dtype)


class CausalConv(nn.Module):
  """3x3x3, or 3x1x1, with two frames of the past and none of the future."""

  features: int
  spatial: int = 3

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to [B, T, H, W, features]."""
    around = (self.spatial // 2, self.spatial // 2)
    return Conv(
      self.features,
      (3, self.spatial, self.spatial),
      (1, 1, 1),
      ((0, 0), around, around),
      name="conv",
    )(stream.before(x, 2))


def in_chunks(
  network: nn.Module, params: Params, x: Array, first: int, size: int
) -> Array:
  """Applies a network to a clip chunk by chunk.

  A backward pass makes a chunk's activations again, so that it, too, keeps
  those of one chunk at a time.

  Args:
    network: maps `(chunk, memory)` to `(output, memory)`.
    params: its parameters.
    x: [B, T, H, W, C].
    first: frames of the first chunk.
    size: frames of each later one; divides `T - first`.

  Returns:
    The outputs [B, ...], joined in time.
  """

  @jax.checkpoint
  def apply(chunk: Array, memory: Memory | None) -> tuple[Array, Memory]:
    return network.apply({"params": params}, chunk, memory)

  out, memory = apply(x[:, :first], None)
  chunks = einops.rearrange(
    x[:, first:], "b (n t) h w c -> n b t h w c", t=size
  )

  def one(memory: Memory, chunk: Array) -> tuple[Memory, Array]:
    out, memory = apply(chunk, memory)
    return memory, out

  _, rest = jax.lax.scan(one, memory, chunks)
  rest = einops.rearrange(rest, "n b t h w c -> b (n t) h w c")
  return jnp.concatenate([out, rest], axis=1)


def parameter_shapes(network: nn.Module, shape: tuple[int, ...]) -> Params:
  """The parameters of a network for a first chunk of `shape`, shapes only."""

  def init() -> Params:
    return network.init(jax.random.key(0), jnp.zeros(shape), None)["params"]

  return nn.meta.unbox(jax.eval_shape(init))
