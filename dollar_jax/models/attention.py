"""Scaled dot-product attention: one function, whatever carries it out.

Three kernels: plain XLA anywhere, in chunks on the CPU; cuDNN's fused attention
on NVIDIA GPUs; splash attention, a Pallas kernel, on TPUs. `choose` says which
one and why, from the platform, the shapes and the type alone.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dollar_jax.models.configs import check_names
from dollar_jax.models.cpu_attention import MANY_SCORES, attend_in_chunks
from dollar_jax.parallel import context as spreading
from dollar_jax.typing import Array

CUDNN_HEAD_DIM = 128
"""The widest head that cuDNN takes on every GPU it knows."""

SPLASH_BLOCK = 512
"""Tokens of a block of splash attention, at most."""

SPLASH_GROUP = 5
"""Blocks of keys whose gradients are made together, at most. Eight, of 512
tokens of 128 float32 numbers, are more than a TPU v5e's fast memory."""

LANES = 128
"""Tokens of a block of splash attention, at least; it is a multiple of them."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """How attention is carried out.

  Attributes:
    kernel: "xla", "cudnn" or "splash".
    context: how tokens meet: "ulysses", "ring", or "local" where a device has
      all keys anyway.
    reason: why, for people.
  """

  kernel: str
  context: str
  reason: str

  def __str__(self) -> str:
    way = "" if self.context == "local" else f" under {self.context}"
    return f"{self.kernel}{way}: {self.reason}"


def choose(
  kernel: str,
  context: str,
  *,
  platform: str,
  dtype: str,
  heads: int,
  head_dim: int,
  keys: int,
  axes: Mapping[str, int] | None = None,
  cross: bool = False,
) -> Choice:
  """Picks the kernel and the way that tokens meet.

  Args:
    kernel: one of `configs.KERNELS`.
    context: one of `configs.CONTEXTS`.
    platform: "cpu", "gpu" or "tpu".
    dtype: of query, key and value.
    heads: N.
    head_dim: K.
    keys: number of keys M, those of all devices.
    axes: sizes of the mesh's axes; None is one device.
    cross: whether the keys are a text's or an image's, and so on every device.

  Raises:
    ValueError: if a name is unknown, if what was asked for by name cannot be
      done, or if the heads do not divide among the "tensor" axis.
  """
  check_names(kernel, context)
  axes = axes or {}
  tensor = axes.get(spreading.HEAD_AXIS, 1)
  ways = axes.get(spreading.TOKEN_AXIS, 1)
  if heads % tensor:
    raise ValueError(
      f"{heads} attention heads do not divide among tensor={tensor} devices; "
      f"use tensor={_divisors(heads)}"
    )
  name, why = _choose_kernel(kernel, platform, dtype, head_dim, keys)
  if ways == 1 or cross:
    return Choice(name, "local", why)
  mine = heads // tensor
  if mine % ways == 0 and context != "ring":
    return Choice(name, "ulysses", f"{why}; {mine} heads / context={ways}")
  among = f"{mine} heads"
  if tensor > 1:
    among = f"{heads} heads / tensor={tensor} = {mine}"
  if context == "ulysses":
    raise ValueError(
      f"context is 'ulysses', but {among} do not divide among context={ways} "
      f"devices; use context={_divisors(mine)}, or set context to 'ring'"
    )
  if context == "auto":
    why = f"{among} do not divide among context={ways}"
  else:
    why = "context is 'ring'"
  if kernel in ("cudnn", "splash"):
    raise ValueError(
      f"attention is {kernel!r}, but {why}, and a ring needs the softmax's "
      f"sums of every step, which {kernel} does not give with gradients; set "
      f"attention to 'xla' or use 'ulysses' with context={_divisors(mine)}"
    )
  return Choice("xla", "ring", f"{why}; the steps of a ring are plain XLA")


def attention(
  query: Array,
  key: Array,
  value: Array,
  kernel: str = "auto",
  context: str = "auto",
  cross: bool = False,
  length: int | None = None,
) -> Array:
  """Full (unmasked) attention with the softmax in float32.

  With an active mesh (`jax.set_mesh`) videos, heads and tokens are spread over
  it, see `parallel.context`.

  Args:
    query: [B, L, N, K].
    key: [B, M, N, K].
    value: [B, M, N, K].
    kernel: one of `configs.KERNELS`.
    context: one of `configs.CONTEXTS`.
    cross: whether keys and values are a text's or an image's: they are few,
      and every device of the "context" axis has all of them.
    length: tokens that are attended to, of a sequence that
      `context.fill_tokens` has filled up.

  Returns:
    [B, L, N, K] in the query's type.

  Raises:
    ValueError: as `choose`.
  """
  axes = spreading.spread_axes()
  choice = choose(
    kernel,
    context,
    platform=spreading.platform(),
    dtype=str(query.dtype),
    heads=query.shape[2],
    head_dim=query.shape[3],
    keys=key.shape[1],
    axes=axes,
    cross=cross,
  )
  attend = _ATTEND[choice.kernel]
  return spreading.over_mesh(
    attend, query, key, value, choice.context, cross, length
  )


def _choose_kernel(
  kernel: str, platform: str, dtype: str, head_dim: int, keys: int
) -> tuple[str, str]:
  """Name of the kernel and why."""
  faults = {
    "cudnn": _cudnn_fault(platform, dtype, head_dim),
    "splash": _splash_fault(platform, dtype),
  }
  if kernel != "auto":
    if fault := faults.get(kernel):
      raise ValueError(
        f"attention is {kernel!r}, but {fault}; set attention to 'auto'"
      )
    return kernel, f"attention is {kernel!r}"
  if platform == "tpu":
    if keys < LANES:
      return "xla", f"{keys} keys do not fill one block of {LANES}"
    best = "splash"
  elif platform == "gpu":
    best = "cudnn"
  else:
    return "xla", f"the devices are {platform}"
  if fault := faults[best]:
    return "xla", fault
  return best, f"the devices are {platform}, {dtype}, head size {head_dim}"


def _cudnn_fault(platform: str, dtype: str, head_dim: int) -> str | None:
  """Why cuDNN cannot be used."""
  if platform != "gpu":
    return f"cuDNN runs on GPUs and the devices are {platform}"
  if dtype not in ("bfloat16", "float16"):
    return f"cuDNN takes bfloat16 or float16, and dtype is {dtype}"
  if head_dim % 8 or head_dim > CUDNN_HEAD_DIM:
    return (
      f"cuDNN takes head sizes that are multiples of 8 up to "
      f"{CUDNN_HEAD_DIM}, and this is {head_dim}"
    )
  return None


def _splash_fault(platform: str, dtype: str) -> str | None:
  """Why splash attention cannot be used."""
  if platform != "tpu":
    return f"splash attention runs on TPUs and the devices are {platform}"
  if dtype not in ("bfloat16", "float32"):
    return f"splash attention takes bfloat16 or float32, and dtype is {dtype}"
  return None


def _divisors(number: int) -> str:
  """What a number divides by, as "1, 2 or 4"."""
  found = [str(i) for i in range(1, number + 1) if number % i == 0]
  *most, last = found
  return f"{', '.join(most)} or {last}" if most else last


def _attend_xla(query: Array, key: Array, value: Array) -> Array:
  """Plain attention.

  Heads go before tokens for the products: on XLA's CPU backend that is
  twice as fast as `jax.nn.dot_product_attention`'s layout. There many scores
  are made chunk by chunk.
  """
  scale = query.shape[-1] ** -0.5
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value))
  many = q.shape[2] * k.shape[2] >= MANY_SCORES
  if many and spreading.platform() == "cpu":
    return jnp.swapaxes(attend_in_chunks(q, k, v), 1, 2)
  weights = jnp.einsum(
    "bnlk,bnmk->bnlm", q, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(weights, axis=-1).astype(value.dtype)
  return jnp.swapaxes(jnp.einsum("bnlm,bnmk->bnlk", weights, v), 1, 2)


def _attend_cudnn(
  query: Array, key: Array, value: Array, implementation: str = "cudnn"
) -> Array:
  """Fused attention of cuDNN; "xla" does the same on any device."""
  length, keys = query.shape[1], key.shape[1]
  # jax refuses to differentiate cuDNN's attention of an odd number of tokens
  q, k, v = (spreading.fill(x, 1, 2) for x in (query, key, value))
  held = None
  if k.shape[1] > keys:
    held = jnp.full(k.shape[:1], keys, jnp.int32)
  out = jax.nn.dot_product_attention(
    q, k, v, key_value_seq_lengths=held, implementation=implementation
  )
  return out[:, :length]


def _attend_splash(
  query: Array, key: Array, value: Array, interpret: bool = False
) -> Array:
  """Splash attention; `interpret` runs it, slowly, on any device."""
  # of no use without a TPU, and jax calls it experimental
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  lengths = query.shape[1], key.shape[1]
  rows, _ = _splash_blocks(lengths[0], 1)
  most = SPLASH_GROUP if query.shape[3] <= LANES else 1
  columns, group = _splash_blocks(lengths[1], most)
  scaled = query * query.shape[-1] ** -0.5
  q, k, v = (
    jnp.swapaxes(spreading.fill(x, 1, step), 1, 2)
    for x, step in ((scaled, rows), (key, group), (value, group))
  )
  mask = masks.FullMask((q.shape[2], k.shape[2]))
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([mask] * q.shape[1]),
    block_sizes=splash.BlockSizes(
      block_q=rows,
      block_kv=columns,
      block_q_dkv=rows,
      block_kv_dkv=group,
      block_kv_dkv_compute=columns,
      use_fused_bwd_kernel=True,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=spreading.RESIDUALS,
    interpret=interpret,
  )
  segments = None
  if k.shape[2] > lengths[1]:  # what fills up is of another segment
    segments = splash.SegmentIds(
      q=jnp.zeros(q.shape[2], jnp.int32),
      kv=(jnp.arange(k.shape[2]) >= lengths[1]).astype(jnp.int32),
    )
  out = jax.vmap(lambda *x: kernel(*x, segment_ids=segments))(q, k, v)
  return jnp.swapaxes(out[:, :, : lengths[0]], 1, 2).astype(query.dtype)


def _splash_blocks(length: int, most: int) -> tuple[int, int]:
  """Tokens of a block and of a group of blocks; the groups fill up little.

  Splash attention's backward pass holds a copy of the queries' gradient for
  every group of keys, so groups of `most` blocks are wanted, or of a few less.
  """
  count = -(-length // SPLASH_BLOCK)
  wanted = [min(count, most - less) for less in range(min(3, most))]
  while all(count % group for group in wanted):
    count += 1
  group = next(group for group in wanted if count % group == 0)
  block = -(-length // (count * LANES)) * LANES
  return block, block * group


_ATTEND = {
  "xla": _attend_xla,
  "cudnn": _attend_cudnn,
  "splash": _attend_splash,
}
