"""Attention whose tokens, heads and videos are spread over the mesh.

`over_mesh` runs a kernel on every device's share: videos over "data" and
"fsdp", heads over "tensor", tokens over "context". Tokens that are apart meet
in one of two ways.

Ulysses (arXiv 2309.14509) exchanges tokens for heads: each device then has
all tokens of some heads, for any kernel, and its result is exchanged back.

Ring (arXiv 2310.01889) leaves the queries where they are; keys and values go
round, the softmax is kept up as they pass. It asks nothing of the number of
heads. Backwards the queries and their gradients go round, which is less to
send, and scores are made again: memory grows with a device's own tokens.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from dollar_jax.typing import Array

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that videos are spread over."""

HEAD_AXIS = "tensor"
"""Mesh axis that heads are spread over."""

TOKEN_AXIS = "context"
"""Mesh axis that tokens are spread over."""

RESIDUALS = "attention_residuals"
"""Name of what a kernel saves for its backward pass, for remat policies."""

RING_SCORES = 2**25
"""Scores that a step of the ring holds at once: 128 MiB."""

HIDDEN = -1e30
"""Score of a token that only fills up: finite, so that no row is NaN."""

AttendFn = Callable[[Array, Array, Array], Array]
"""`f(query [B, L, N, K], key [B, M, N, K], value) -> [B, L, N, K]`, of what
one device has."""


def platform() -> str:
  """What the computation being traced is for: "cpu", "gpu" or "tpu".

  That is the active mesh's, which may be of devices that are not here; with
  no mesh it is jax's default backend.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def spread_axes() -> dict[str, int]:
  """Sizes of the active mesh's axes that attention spreads over.

  Axes of one device count as absent, and so do those that a surrounding
  `shard_map` has split already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ours = (*BATCH_AXES, HEAD_AXIS, TOKEN_AXIS)
  return {
    name: mesh.shape[name]
    for name in _free_axes()
    if name in ours and mesh.shape[name] > 1
  }


def over_mesh(
  attend: AttendFn,
  query: Array,
  key: Array,
  value: Array,
  method: str,
  local_keys: bool = False,
  length: int | None = None,
) -> Array:
  """Attention on the active mesh.

  A batch that does not divide among "data" or "fsdp" is computed by every
  device of that axis. Tokens that do not divide among "context" are filled
  up, here unless `fill_tokens` has done so; what fills up is never attended
  to.

  Args:
    attend: the kernel, for one device's share; a ring has its own.
    query: [B, L, N, K].
    key: [B, M, N, K].
    value: [B, M, N, K].
    method: how tokens meet, "ulysses" or "ring"; not looked at with local
      keys or without a "context" axis.
    local_keys: whether every device of "context" has all keys.
    length: tokens that do not only fill up, of queries and keys that
      `fill_tokens` has made longer.

  Returns:
    [B, L, N, K].
  """
  axes = spread_axes()
  if not axes:
    return attend(query, key, value)
  ways = axes.get(TOKEN_AXIS, 1)
  given = query.shape[1]
  lengths = (given, key.shape[1]) if length is None else (length, length)
  tokens = TOKEN_AXIS if ways > 1 else None
  key_tokens = None if local_keys else tokens
  if tokens and not local_keys:
    methods = {"ulysses": _ulysses, "ring": _ring_attention}
    share = functools.partial(methods[method], attend, lengths, ways)
  else:
    share = attend
  rows = _batch_axes(query.shape[0], axes)
  heads = HEAD_AXIS if HEAD_AXIS in axes else None
  queries = PartitionSpec(rows, tokens, heads, None)
  keys = PartitionSpec(rows, key_tokens, heads, None)
  spread = jax.shard_map(
    share,
    in_specs=(queries, keys, keys),
    out_specs=queries,
    axis_names=set(_free_axes()),
    check_vma=False,
  )
  if tokens:
    query = fill(query, 1, ways)
  if key_tokens:
    key, value = (fill(x, 1, ways) for x in (key, value))
  return spread(query, key, value)[:, :given]


def fill_tokens(x: Array) -> Array:
  """Zeros behind the tokens [B, L, ...], up to what divides among "context".

  For a sequence that goes through many blocks: what does not divide would be
  filled up and cut at every attention. Without such an axis, `x` as it is.
  """
  return fill(x, 1, spread_axes().get(TOKEN_AXIS, 1))


def fill(x: Array, axis: int, step: int) -> Array:
  """Zeros at the end of an axis, up to the next multiple of `step`."""
  missing = -x.shape[axis] % step
  if not missing:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, missing)
  return jnp.pad(x, widths)


def _free_axes() -> tuple[str, ...]:
  """Axes of the active mesh that no surrounding `shard_map` has split."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return tuple(name for name, kind in kinds if kind != AxisType.Manual)


def _batch_axes(batch: int, axes: dict[str, int]) -> tuple[str, ...] | None:
  """The axes that a batch divides among."""
  used = []
  for name in BATCH_AXES:
    if name in axes and batch % math.prod(axes[a] for a in [*used, name]) == 0:
      used.append(name)
  return tuple(used) or None


def _ulysses(
  attend: AttendFn,
  lengths: tuple[int, int],
  ways: int,
  query: Array,
  key: Array,
  value: Array,
) -> Array:
  """One device's part of Ulysses, tokens [B, L / ways, N, K] in and out."""

  def gather(x: Array, length: int) -> Array:
    x = jax.lax.all_to_all(x, TOKEN_AXIS, 2, 1, tiled=True)
    return x[:, :length]

  query = gather(query, lengths[0])
  out = attend(query, gather(key, lengths[1]), gather(value, lengths[1]))
  out = fill(out, 1, ways)
  return jax.lax.all_to_all(out, TOKEN_AXIS, 1, 2, tiled=True)


def _ring_attention(
  attend: AttendFn,
  lengths: tuple[int, int],
  ways: int,
  query: Array,
  key: Array,
  value: Array,
) -> Array:
  """One device's part of a ring, tokens [B, L / ways, N, K] in and out."""
  del attend
  query = query * query.shape[-1] ** -0.5
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  batch, heads, length, size = q.shape
  most = max(128, RING_SCORES // (batch * heads * k.shape[2]))
  chunks = -(-length // most)
  # rows that fill up the last chunk have no gradient, and change none
  q = fill(q, 2, chunks).reshape(batch, heads, chunks, -1, size)
  out = _ring(jnp.moveaxis(q, 2, 0), k, v, lengths[1], ways)
  out = jnp.moveaxis(out, 0, 2).reshape(batch, heads, -1, size)
  return jnp.swapaxes(out[:, :, :length], 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ring(query: Array, key: Array, value: Array, length: int, ways: int):
  """Chunks of queries [C, B, N, R, K] to keys [B, N, M / ways, K]."""
  return _ring_forward(query, key, value, length, ways)[0]


def _ring_forward(
  query: Array, key: Array, value: Array, length: int, ways: int
) -> tuple[Array, tuple]:
  rank = jax.lax.axis_index(TOKEN_AXIS)

  def meet(softmax: tuple, key: Array, value: Array, owner: Array) -> tuple:
    """The softmax so far and the keys of one more device."""

    def chunk(inputs: tuple) -> tuple:
      q, out, highest, total = inputs
      scores = _scores(q, key, owner, length, ways)
      top = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
      weights, shrink = jnp.exp(scores - top), jnp.exp(highest - top)
      total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
      new = _dot("bnlm,bnmk->bnlk", weights.astype(value.dtype), value)
      return out * shrink + new, top, total

    return jax.lax.map(chunk, (query, *softmax))

  def step(carry: tuple, turn: Array) -> tuple[tuple, None]:
    softmax, key, value = carry
    following = _pass_on((key, value), ways)  # while these are looked at
    owner = (rank - turn) % ways
    return (meet(softmax, key, value, owner), *following), None

  column = (*query.shape[:-1], 1)
  softmax = (
    jnp.zeros(query.shape, jnp.float32),
    jnp.full(column, -jnp.inf, jnp.float32),
    jnp.zeros(column, jnp.float32),
  )
  carry, _ = jax.lax.scan(step, (softmax, key, value), jnp.arange(ways - 1))
  out, top, total = meet(*carry, (rank + 1) % ways)
  out = checkpoint_name((out / total).astype(query.dtype), RESIDUALS)
  log_total = checkpoint_name(top + jnp.log(total), RESIDUALS)
  return out, (query, key, value, out, log_total)


def _ring_backward(
  length: int, ways: int, saved: tuple[Array, ...], grad: Array
) -> tuple[Array, Array, Array]:
  query, key, value, out, log_total = saved
  rank = jax.lax.axis_index(TOKEN_AXIS)
  along = grad.astype(jnp.float32) * out.astype(jnp.float32)
  along = jnp.sum(along, axis=-1, keepdims=True)

  def meet(grads: tuple, grad_query: Array, queries: tuple) -> tuple:
    """The keys' gradients so far and the queries of one more device."""

    def chunk(grads: tuple, inputs: tuple) -> tuple[tuple, Array]:
      grad_k, grad_v = grads
      grad_q, q, grad, log_total, along = inputs
      weights = jnp.exp(_scores(q, key, rank, length, ways) - log_total)
      slopes = weights * (_dot("bnlk,bnmk->bnlm", grad, value) - along)
      slopes, weights = slopes.astype(q.dtype), weights.astype(q.dtype)
      grad_q += _dot("bnlm,bnmk->bnlk", slopes, key)
      grad_k += _dot("bnlm,bnlk->bnmk", slopes, q)
      grad_v += _dot("bnlm,bnlk->bnmk", weights, grad)
      return (grad_k, grad_v), grad_q

    return jax.lax.scan(chunk, grads, (grad_query, *queries))

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    grads, grad_query, queries = carry
    following = _pass_on(queries, ways)
    grads, grad_query = meet(grads, grad_query, queries)
    return (grads, _pass_on(grad_query, ways), following), None

  def zeros(x: Array) -> Array:
    return jnp.zeros(x.shape, jnp.float32)

  carry = (zeros(key), zeros(value)), zeros(query)
  carry = (*carry, (query, grad, log_total, along))
  carry, _ = jax.lax.scan(step, carry, length=ways - 1)
  grads, grad_query = meet(*carry)
  grads = (_pass_on(grad_query, ways), *grads)  # home again
  return tuple(
    g.astype(x.dtype) for g, x in zip(grads, (query, key, value), strict=True)
  )


_ring.defvjp(_ring_forward, _ring_backward)

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(
  query: Array, key: Array, owner: Array, length: int, ways: int
) -> Array:
  """Scores [B, N, R, M / ways] for the keys of device `owner`."""
  scores = _dot("bnlk,bnmk->bnlm", query, key)
  mine = key.shape[2]
  if mine * ways == length:
    return scores
  position = owner * mine + jnp.arange(mine)
  return jnp.where(position < length, scores, HIDDEN)


def _pass_on(tree: tuple | Array, ways: int) -> tuple | Array:
  """What the neighbour before sent, in exchange for ours to the next."""
  ring = [(i, (i + 1) % ways) for i in range(ways)]
  return jax.lax.ppermute(tree, TOKEN_AXIS, ring)
