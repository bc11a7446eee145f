"""Scaled dot-product attention: one function, whatever carries it out."""

import jax
import jax.numpy as jnp

from dollar_jax.models.cpu_attention import MANY_SCORES, attend_in_chunks
from dollar_jax.typing import Array


def attention(query: Array, key: Array, value: Array) -> Array:
  """Full (unmasked) attention with the softmax in float32.

  Heads go before tokens for the products: on XLA's CPU backend that is
  twice as fast as `jax.nn.dot_product_attention`'s layout. There many scores
  are made chunk by chunk.

  Args:
    query: [B, L, N, K].
    key: [B, M, N, K].
    value: [B, M, N, K].

  Returns:
    [B, L, N, K] in the query's type.
  """
  scale = query.shape[-1] ** -0.5
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value))
  many = q.shape[2] * k.shape[2] >= MANY_SCORES
  if many and jax.default_backend() == "cpu":
    return jnp.swapaxes(attend_in_chunks(q, k, v), 1, 2)
  weights = jnp.einsum(
    "bnlk,bnmk->bnlm", q, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(weights, axis=-1).astype(value.dtype)
  return jnp.swapaxes(jnp.einsum("bnlm,bnmk->bnlk", weights, v), 1, 2)
