"""Adapters: what they add, what they train, what they merge to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dollar_jax.models import lora
from dollar_jax.models.denoiser import EXPERTS
from dollar_jax.models.lora import Adapted
from tests.tiny import COGVIDEOX, WAN, WORDS, cogvideox, random_params, wan

init_adapters = jax.jit(lora.init_adapters, static_argnums=2)
merge = jax.jit(lora.merge)


def adapted(denoiser, rank=2):
  """A network with adapters that change something."""
  base = random_params(denoiser, scale=0.2)
  adapters = jax.eval_shape(
    lambda key: lora.init_adapters(key, base, rank), jax.random.key(0)
  )
  rng = np.random.default_rng(3)
  return Adapted(
    base,
    jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape), adapters),
  )


@functools.partial(jax.jit, static_argnums=0)
def ask(denoiser, params):
  rng = np.random.default_rng(1)
  x_t = rng.standard_normal((2, 2, 4, 4, 4)).astype(np.float32)
  text = rng.standard_normal((2, WORDS, 10)).astype(np.float32)
  return denoiser.raw(params, x_t, np.array([1.0, 0.3], np.float32), text)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
  "make, config, layers",
  [(wan, WAN, 10), (cogvideox, COGVIDEOX, 6)],
  ids=["wan", "cogvideox"],
)
def test_adapted_computes_what_it_merges_to(make, config, layers, scan):
  # per block: q, k, v and out of each attention, two of the feed-forward
  denoiser = make(dataclasses.replace(config, scan=scan))
  params = adapted(denoiser)
  leaves = jax.tree.leaves(params.adapters)
  assert len(leaves) == 2 * layers * (1 if scan else 2)
  out = ask(denoiser, params)
  np.testing.assert_allclose(out, ask(denoiser, merge(params)), atol=2e-5)
  assert np.abs(np.asarray(out) - ask(denoiser, params.base)).max() > 0.01


def test_new_adapters_change_nothing():
  denoiser = wan()
  base = random_params(denoiser, scale=0.2)
  params = Adapted(base, init_adapters(jax.random.key(0), base, 4))
  np.testing.assert_array_equal(ask(denoiser, params), ask(denoiser, base))
  names = traverse_util.flatten_dict(params.adapters, sep="/")
  assert names["blocks/attn1/to_q/a"].shape == (2, 36, 4)
  assert names["blocks/ffn/up/b"].shape == (2, 4, 20)
  scale = float(np.std(names["blocks/ffn/up/a"]))
  assert scale == pytest.approx(36**-0.5, rel=0.2)


def test_the_gradient_is_that_of_the_merged_kernel():
  denoiser = wan()
  params = adapted(denoiser)

  def loss(params):
    return (ask(denoiser, params) ** 2).sum()

  gradient = jax.jit(jax.grad(loss))
  grads = gradient(params).adapters
  whole = gradient(merge(params))
  g = whole["blocks"]["attn2"]["to_v"]["kernel"]
  mine = grads["blocks"]["attn2"]["to_v"]
  layer = params.adapters["blocks"]["attn2"]["to_v"]
  a, b = layer["a"], layer["b"]
  mine = jax.device_get(mine)
  g, a, b = (np.asarray(x, np.float32) for x in (g, a, b))
  swap = lambda x: np.swapaxes(x, -1, -2)  # noqa: E731
  np.testing.assert_allclose(mine["a"], g @ swap(b), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(mine["b"], swap(a) @ g, rtol=1e-3, atol=1e-4)


def test_two_experts_have_adapters_each():
  denoiser = wan(boundary=0.875)
  one = random_params(denoiser, scale=0.2)
  base = dict(zip(EXPERTS, (one, jax.tree.map(lambda x: -x, one)), strict=True))
  adapters = init_adapters(jax.random.key(0), base, 2)
  adapters = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), adapters)
  params = Adapted(base, adapters)
  merged = merge(params)
  assert list(merged) == list(EXPERTS)
  np.testing.assert_allclose(
    ask(denoiser, params), ask(denoiser, merged), atol=2e-5
  )


def test_what_cannot_be_adapted_is_named():
  base = random_params(wan())
  with pytest.raises(ValueError, match="rank of the adapters is 0"):
    lora.init_adapters(jax.random.key(0), base, 0)
  with pytest.raises(ValueError, match="no projections"):
    lora.init_adapters(jax.random.key(0), {"proj_out": base["proj_out"]}, 2)


def test_a_merge_keeps_the_base_s_type():
  params = adapted(wan())
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params.base)
  merged = merge(Adapted(half, params.adapters))
  assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
