"""Attention against `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.models import cpu_attention
from dollar_jax.models.attention import attention

attend = jax.jit(attention)


def _inputs(batch, queries, keys, heads=3, size=8):
  rng = np.random.default_rng(0)
  lengths = (queries, keys, keys)
  return [
    rng.standard_normal((batch, n, heads, size)).astype(np.float32)
    for n in lengths
  ]


@pytest.mark.parametrize("queries, keys", [(7, 7), (5, 9), (4, 1)])
def test_output_equals_jax(queries, keys):
  inputs = _inputs(2, queries, keys)
  np.testing.assert_allclose(
    attend(*inputs), jax.nn.dot_product_attention(*inputs), atol=2e-6
  )


def test_gradients_equal_jax():
  inputs = _inputs(2, 5, 6)
  weight = _inputs(2, 5, 1)[0][::-1]

  def gradients(fn):
    def loss(*x):
      return jnp.sum(fn(*x) * weight)

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)

  ours, theirs = map(gradients, (attention, jax.nn.dot_product_attention))
  for a, b in zip(ours, theirs, strict=True):
    assert float(jnp.abs(b).max()) > 1e-2
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_equal_keys_average_the_values():
  query, key, value = _inputs(2, 4, 6)
  out = attend(query, np.ones_like(key), value)
  wanted = np.broadcast_to(value.mean(1, keepdims=True), query.shape)
  np.testing.assert_allclose(out, wanted, atol=1e-6)


def test_large_logits_do_not_overflow():
  query, _, value = _inputs(1, 6, 6)
  query = 1e3 * query / np.linalg.norm(query, axis=-1, keepdims=True)
  out = attend(query, query, value)  # each token looks at itself alone
  np.testing.assert_allclose(out, value, atol=1e-6)


def test_bfloat16_keeps_logits_and_softmax_in_float32():
  """Logits of 40.25 and 40.56, which bfloat16 would round to 40.5."""
  query, near, far = (
    jnp.full((1, 1, 1, 1), x, jnp.bfloat16) for x in (10.0625, 4.03125, 4.0)
  )
  value = jnp.array([1, 0], jnp.bfloat16).reshape(1, 2, 1, 1)
  out = attend(query, jnp.concatenate([near, far], 1), value)
  assert out.dtype == jnp.bfloat16
  wanted = jax.nn.sigmoid(10.0625 * 0.03125)
  assert float(out[0, 0, 0, 0]) == pytest.approx(float(wanted), abs=4e-3)


@pytest.mark.parametrize("queries, keys", [(300, 290), (130, 1), (128, 257)])
def test_chunks_equal_jax(monkeypatch, queries, keys):
  """Several chunks of 128 rows, the last one filled up."""
  monkeypatch.setattr(cpu_attention, "CHUNK_SCORES", 1)
  *inputs, weight = _inputs(2, queries, keys) + _inputs(2, queries, 1)[:1]

  def in_chunks(*x):
    scaled = (x[0] * 8**-0.5, *x[1:])
    heads = (jnp.swapaxes(a, 1, 2) for a in scaled)
    return jnp.swapaxes(cpu_attention.attend_in_chunks(*heads), 1, 2)

  def values_and_gradients(fn):
    out, pull = jax.vjp(fn, *inputs)
    return out, *pull(weight[:, ::-1])

  ours, theirs = (
    jax.jit(lambda fn=fn: values_and_gradients(fn))()
    for fn in (in_chunks, jax.nn.dot_product_attention)
  )
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_chunks_in_bfloat16_are_within_its_spread():
  inputs = [x.astype(jnp.bfloat16) for x in _inputs(1, 520, 520)]
  wanted = jax.nn.dot_product_attention(
    *(x.astype(jnp.float32) for x in inputs)
  )
  out = attend(*inputs)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), wanted, atol=4e-3)


@pytest.mark.parametrize("tokens, chunks", [(511, False), (512, True)])
def test_many_scores_go_chunk_by_chunk_on_the_cpu(tokens, chunks):
  jaxpr = str(jax.make_jaxpr(attention)(*_inputs(1, tokens, tokens)))
  assert ("scan" in jaxpr) == chunks
