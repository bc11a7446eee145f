"""Matmul FLOPs of a program, counted in its jaxpr.

XLA's own count takes the body of a loop once and knows nothing of kernels; a
jaxpr tells the trips of every scan and the shapes of every product.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import Literal

_FORWARD, _BACKWARD = 2, 5
"""Products of queries, keys and values: a fused kernel keeps no scores, so
that its backward pass makes them again beside the four gradients."""


def matmul_flops(jaxpr: Any) -> int:
  """Counts the FLOPs of matrix products and convolutions, of all devices.

  A multiply-add is two FLOPs. Of a `cond` the costlier branch counts. A
  convolution's taps on padding count as others do, and so do tokens that only
  fill up a kernel's block. What lies in a `shard_map` is done by every device.
  What nothing uses does not count, as XLA leaves it out: where a policy keeps
  what a kernel gave, jax leaves the call that made it again, without results.

  Args:
    jaxpr: such as `jax.make_jaxpr(f)(*args)` or `jitted.trace(*args).jaxpr`.

  Raises:
    ValueError: for a product in a loop whose number of trips is not known
      (`while_loop`), or in a kernel that is not known.
  """
  used, total = set(_variables(getattr(jaxpr, "jaxpr", jaxpr).outvars)), 0
  for equation in reversed(jaxpr.eqns):
    if equation.effects or used.intersection(_variables(equation.outvars)):
      used.update(_variables(equation.invars))
      total += _flops(equation)
  return total


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
  return (atom for atom in atoms if not isinstance(atom, Literal))


def inner_jaxprs(equation: Any) -> list[Any]:
  """The jaxprs among the parameters of an equation."""
  parameters = jax.tree.leaves(list(equation.params.values()))
  return [p for p in parameters if hasattr(p, "eqns")]


def _flops(equation: Any) -> int:
  name = equation.primitive.name
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    terms = math.prod(left[axis] for axis in contracted)
    return 2 * terms * equation.outvars[0].aval.size
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    axis = equation.params["dimension_numbers"].rhs_spec[0]
    terms = kernel.size // kernel.shape[axis]
    return 2 * terms * equation.outvars[0].aval.size
  kernel = _attention_kernel(equation)
  if kernel is not None:
    return kernel
  inside = [matmul_flops(inner) for inner in inner_jaxprs(equation)]
  if name == "scan":
    return equation.params["length"] * sum(inside)
  if name == "cond":
    return max(inside)
  if name == "shard_map":
    return math.prod(equation.params["mesh"].shape.values()) * sum(inside)
  if name in ("while", "pallas_call") and any(inside):
    raise ValueError(
      f"a matrix product lies in {name!r}, whose repetitions a jaxpr does "
      "not tell; write the loop as lax.scan"
    )
  return sum(inside)


def _attention_kernel(equation: Any) -> int | None:
  """FLOPs of a fused attention; None for anything else."""
  name = equation.primitive.name
  shapes = [
    x.aval.shape
    for x in equation.invars
    if getattr(x.aval, "ndim", 0) >= 3
    and jax.numpy.issubdtype(x.aval.dtype, jax.numpy.floating)
  ]
  if name == "pallas_call":
    about = str(equation.params.get("name_and_src_info") or "")
    about += str(equation.params.get("name") or "")
    if "splash" not in about:
      return None
    # query [..., N, L, K], key [..., N, M, K]
    products = _BACKWARD if "dkv" in about else _FORWARD
    return 2 * products * math.prod(shapes[0]) * shapes[1][-2]
  if name.startswith("dot_product_attention_"):
    # cuDNN: query [B, L, N, K], key [B, M, N, K]
    products = _BACKWARD if "bwd" in name else _FORWARD
    return 2 * products * math.prod(shapes[0]) * shapes[1][1]
  return None
