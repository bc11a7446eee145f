"""Causal convolutions of a clip that is coded chunk by chunk.

Each convolution keeps the last frames it saw, so that the chunks together give
what the whole clip would, in the memory of one chunk. On a CPU it keeps what
those frames add to the next ones instead (`frame_convolution` says why).
"""

import itertools
from collections.abc import Iterator, Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dollar_jax.models.frame_convolution import (
  Padding,
  convolve,
  convolve_enlarged,
  shares,
)
from dollar_jax.parallel.context import platform
from dollar_jax.typing import Array, Params

Memory = tuple[Array, ...]
"""What the convolutions of one network need of the chunk before, in the order
they run."""


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

  def add(self, shares: Sequence[Array]) -> Array:
    """Sums what frames add to themselves and to those after them.

    Remembers what is for the frames of the next chunk.

    Args:
      shares: [B, T, H, W, C] each, the i-th for the frame i later.

    Returns:
      [B, T, H, W, C].
    """
    frames, ahead = shares[0].shape[1], len(shares) - 1
    if not self.first:
      past = next(self._old)
    elif self._repeat:
      past = [sum(s[:, :1] for s in shares[i:]) for i in range(1, ahead + 1)]
      past = jnp.concatenate(past, axis=1)
    else:
      past = None

    def total(start: int, stop: int) -> Array:
      terms = [
        share[:, start - i : stop - i]
        for i, share in enumerate(shares)
        if i <= start and stop <= frames + i
      ]
      if past is not None and stop <= ahead:
        terms.append(past[:, start:stop])
      return sum(terms[1:], terms[0])

    # joined of what has equal terms: sums of padded arrays take longer
    edges = sorted({*range(ahead + 1), *range(frames, frames + ahead + 1)})
    parts = [total(*pair) for pair in itertools.pairwise(edges)]
    here = edges.index(frames)
    self.keep(jnp.concatenate(parts[here:], axis=1))
    return jnp.concatenate(parts[:here], axis=1)

  def keep(self, x: Array) -> None:
    """Remembers an array for the next chunk."""
    self._new.append(x)

  @property
  def memory(self) -> Memory:
    """What the next chunk needs."""
    return tuple(self._new)


class Conv(nn.Module):
  """A convolution over time, rows and columns; time is not padded.

  Attributes:
    features: output channels.
    kernel: its size on each axis.
    strides: its stride on each axis.
    padding: (before, after) of rows and of columns.
    enlarge: whether it is of frames of twice the size, each pixel standing for
      four; 1x3x3 with padding of one only.
  """

  features: int
  kernel: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  padding: Padding = ((0, 0), (0, 0))
  enlarge: bool = False

  @nn.compact
  def __call__(self, x: Array, stream: Stream | None = None) -> Array:
    """Maps [B, T, H, W, C] to [B, T', H', W', features].

    Args:
      x: a chunk.
      stream: has what came before; None if nothing does.
    """
    shape = (*self.kernel, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    if platform() == "cpu":
      y = self._by_frame(x, kernel, stream)
    else:
      y = self._whole(x, kernel, stream)
    return y + bias.astype(x.dtype)

  def _whole(self, x: Array, kernel: Array, stream: Stream | None) -> Array:
    if self.enlarge:
      x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    if stream is not None:
      x = stream.before(x, self.kernel[0] - 1)
    return jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      self.strides,
      ((0, 0), *self.padding),
      dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )

  def _by_frame(self, x: Array, kernel: Array, stream: Stream | None) -> Array:
    if self.enlarge:
      return convolve_enlarged(x, kernel)
    kernel = kernel.astype(x.dtype)
    if stream is None:
      return convolve(x, kernel, self.strides, self.padding)
    return stream.add(shares(x, kernel, self.padding))


class CausalConv(nn.Module):
  """3x3x3, or 3x1x1, with two frames of the past and none of the future."""

  features: int
  spatial: int = 3

  @nn.compact
  def __call__(self, x: Array, stream: Stream) -> Array:
    """Maps [B, T, H, W, C] to [B, T, H, W, features]."""
    kernel = (3, self.spatial, self.spatial)
    around = (self.spatial // 2, self.spatial // 2)
    conv = Conv(self.features, kernel, padding=(around, around), name="conv")
    return conv(x, stream)

  def skip(self, x: Array, stream: Stream) -> None:
    """Lets a chunk pass as if it and all before it were zeros."""
    features = self.features if platform() == "cpu" else x.shape[-1]
    stream.keep(jnp.zeros((x.shape[0], 2, *x.shape[2:4], features), x.dtype))


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
