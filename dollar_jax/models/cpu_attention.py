"""Attention for XLA's CPU backend: head by head, some rows of scores at a time.

Half the time of the plain form there, and memory that grows with the number of
tokens, not with its square. Scores are made again for the gradient (arXiv
2205.14135), with keys as rows, so that four of its five products, and the fifth
transposed, are of rows with columns: XLA's other forms are three times slower.
"""

import functools

import jax
import jax.numpy as jnp

from dollar_jax.typing import Array

MANY_SCORES = 2**18
"""Scores of a head from which on chunks are worth their loop."""

CHUNK_SCORES = 2**21
"""Scores of a chunk: 8 MiB, of the order of a core's cache."""


def attend_in_chunks(query: Array, key: Array, value: Array) -> Array:
  """Full attention, the softmax in float32.

  Args:
    query: [B, N, L, K], scaled.
    key: [B, N, M, K].
    value: [B, N, M, K].

  Returns:
    [B, N, L, K] in the query's type.
  """
  heads = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
  return _attend(*heads).reshape(query.shape)


@jax.custom_vjp
def _attend(query: Array, key: Array, value: Array) -> Array:
  """Attention of heads [H, L, K] to [H, M, K]."""
  return _forward(query, key, value)[0]


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple]:
  length = query.shape[1]

  def head(inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    q, k, v = inputs
    columns = k.T

    def chunk(q: Array) -> tuple[Array, Array]:
      scores = _dot(q, columns)
      highest = jnp.max(scores, axis=1, keepdims=True)
      weights = jnp.exp(scores - highest)
      total = jnp.sum(weights, axis=1, keepdims=True)
      out = _dot(weights.astype(v.dtype), v) / total
      return out.astype(q.dtype), highest + jnp.log(total)

    out, log_total = jax.lax.map(chunk, _split(q, k.shape[0]))
    return out.reshape(-1, v.shape[1])[:length], log_total.ravel()[:length]

  out, log_total = jax.lax.map(head, (query, key, value))
  return out, (query, key, value, out, log_total)


def _backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
  query, key, value, out, log_total = saved
  length = key.shape[1]
  along = jnp.sum(grad.astype(jnp.float32) * out, axis=-1)

  def head(inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    q, k, v, log_total, grad, along = inputs
    columns, grad_columns = q.T, grad.T

    def chunk(grad_q: Array, rows: tuple[Array, Array]) -> tuple[Array, tuple]:
      k, v = rows
      weights = jnp.exp(_dot(k, columns) - log_total)
      grad_scores = weights * (_dot(v, grad_columns) - along)
      grad_scores = grad_scores.astype(q.dtype)
      grad_v = _dot(weights.astype(q.dtype), grad)
      grad_k = _dot(grad_scores, q)
      grad_q = grad_q + _dot(k.T, grad_scores)
      return grad_q, (grad_k.astype(k.dtype), grad_v.astype(v.dtype))

    # keys that only fill up a chunk are zero: they change no gradient
    rows = _split(k, q.shape[0]), _split(v, q.shape[0])
    start = jnp.zeros(columns.shape, jnp.float32)
    grad_q, grads = jax.lax.scan(chunk, start, rows)
    grad_k, grad_v = (x.reshape(-1, x.shape[-1])[:length] for x in grads)
    return grad_q.T.astype(q.dtype), grad_k, grad_v

  return jax.lax.map(head, (query, key, value, log_total, grad, along))


_attend.defvjp(_forward, _backward)

_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


def _split(rows: Array, columns: int) -> Array:
  """Rows [R, K] as equal chunks [C, R / C, K], filled up with zeros."""
  most = max(128, CHUNK_SCORES // columns)
  count = -(-rows.shape[0] // most)
  size = -(-rows.shape[0] // count)
  filled = jnp.pad(rows, ((0, count * size - rows.shape[0]), (0, 0)))
  return filled.reshape(count, size, rows.shape[1])
