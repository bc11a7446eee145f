"""FLOPs in jaxprs: products, loops, branches, kernels."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from dollar_jax.models import attention
from dollar_jax.parallel.flops import matmul_flops

A, B, SQUARE = jnp.ones((3, 5)), jnp.ones((5, 7)), jnp.ones((4, 4))
AB, CUBE = 2 * 3 * 5 * 7, 2 * 4 * 4 * 4
IMAGE, KERNEL = jnp.ones((2, 4, 5, 6)), jnp.ones((3, 3, 6, 8))
CONVOLUTION = 2 * (2 * 4 * 5) * (3 * 3) * 6 * 8


def flops(fn, *args):
  return matmul_flops(jax.make_jaxpr(fn)(*args))


def power(a, b):
  return jnp.sum((a @ b) ** 2)


def convolve(x, kernel, groups=1):
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", None, None, layout, groups
  )


def scanned(x):
  return jax.lax.scan(
    lambda y, _: (jax.jit(jnp.matmul)(y, y), None), x, None, 6
  )


def looped(x):
  return jax.lax.fori_loop(0, 5, lambda _, y: y @ y, x)


def branched(x):
  return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)


@jax.custom_vjp
def product(a, b):
  return a @ b


product.defvjp(
  lambda a, b: (a @ b, (a, b)), lambda saved, g: (g @ saved[1].T, 0 * saved[1])
)


def product_loss(a, b):
  return jnp.sum(product(a, b))


def batched(x, y):
  return jnp.einsum("bnlk,bnmk->bnlm", x, y)


def grouped(x, kernel):
  return convolve(x, kernel, groups=2)


@pytest.mark.parametrize(
  "fn, args, wanted",
  [
    (jnp.matmul, (A, B), AB),
    (lambda a: jnp.sum(a * a), (A,), 0),
    (batched, (jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3, 6, 5))), 2 * 6 * 24 * 5),
    (jax.vmap(lambda row: row @ B), (A,), AB),
    (jax.grad(power), (A, B), 2 * AB),
    (jax.grad(power, (0, 1)), (A, B), 3 * AB),
    # the first run, one more for the backward pass, and that for two inputs
    (jax.value_and_grad(jax.checkpoint(power), (0, 1)), (A, B), 4 * AB),
    (product, (A, B), AB),
    (jax.value_and_grad(product_loss), (A, B), 2 * AB),
    (lambda a, b: jax.nn.silu(a @ b), (A, B), AB),
    (scanned, (SQUARE,), 6 * CUBE),
    (looped, (SQUARE,), 5 * CUBE),
    (branched, (SQUARE,), 2 * CUBE),
    (convolve, (IMAGE, KERNEL), CONVOLUTION),
    (grouped, (IMAGE, jnp.ones((3, 3, 3, 8))), CONVOLUTION // 2),
    (
      jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1)),
      (IMAGE, KERNEL),
      3 * CONVOLUTION,
    ),
  ],
)
def test_count_equals_the_count_by_hand(fn, args, wanted):
  assert flops(fn, *args) == wanted


def test_a_product_in_a_loop_of_unknown_length_is_refused():
  def grow(x):
    return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

  with pytest.raises(ValueError, match="'while', whose repetitions"):
    flops(grow, SQUARE)


def attend(kernel):
  def run(query, key, value):
    return jnp.sum(kernel(query, key, value))

  return run


def test_fused_attention_counts_by_its_shapes():
  splash = attend(functools.partial(attention._attend_splash, interpret=True))
  query, key = jnp.ones((2, 256, 3, 64)), jnp.ones((2, 128, 3, 64))
  product = 2 * 2 * 256 * 3 * 128 * 64
  assert flops(splash, query, key, key) == 2 * product
  both = flops(jax.grad(splash, (0, 1, 2)), query, key, key)
  rows = 2 * query.size  # the result by its gradient, summed over each head
  assert both == (2 + 5) * product + rows


def test_a_kernel_that_is_not_known_is_refused():
  def kernel(x_ref, out_ref):
    out_ref[...] = x_ref[...] @ x_ref[...]

  call = pl.pallas_call(
    kernel, jax.ShapeDtypeStruct((4, 4), jnp.float32), interpret=True
  )
  with pytest.raises(ValueError, match="'pallas_call', whose repetitions"):
    flops(call, SQUARE)


def test_what_a_shard_map_holds_is_done_by_every_device():
  mesh = jax.sharding.AbstractMesh((2, 3), ("a", "b"))
  spread = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=P("a"), out_specs=P("a")
  )
  # rows [2, 5] by their transpose, on each of six devices
  assert flops(spread, jnp.ones((4, 5))) == 6 * 2 * 2 * 2 * 5


def test_what_nothing_uses_does_not_count():
  def unused(a, b):
    jax.jit(jnp.matmul)(a, b)
    return a @ b

  def scores(x):
    y = jax.ad_checkpoint.checkpoint_name(x @ SQUARE, "kept")
    return jnp.sum(jnp.exp(y) @ SQUARE)

  keep = jax.checkpoint_policies.save_only_these_names("kept")
  assert flops(unused, A, B) == AB
  # two products forwards, two backwards; what is kept spares the first again
  assert flops(jax.value_and_grad(jax.checkpoint(scores)), SQUARE) == 5 * CUBE
  kept = jax.checkpoint(scores, policy=keep)
  assert flops(jax.value_and_grad(kept), SQUARE) == 4 * CUBE
