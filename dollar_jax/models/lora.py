"""Low-rank adapters: few trainable parameters on a network that is shared.

A linear layer with an adapter computes `x W + (x A) B` (LoRA, arXiv 2106.09685,
with a scale of 1). The adapters of a network are a tree of their own: for every
adapted `…/kernel` of the base two leaves, `…/a` [in, rank] and `…/b`
[rank, out], with the same leading axis of layers where blocks are stacked.
"""

import jax
import jax.numpy as jnp
from flax import struct, traverse_util
from jax.sharding import PartitionSpec

from dollar_jax.typing import Array, Params, PyTree

COLLECTION = "lora"
"""Linen's name for the adapters; layers look for theirs in it."""

ADAPTED = ("to_q", "to_k", "to_v", "to_out", "up", "down")
"""The attention and feed-forward projections of a block."""


@struct.dataclass
class Adapted:
  """Parameters of a network that shares another's.

  Attributes:
    base: the network's own tree; may be in a smaller type.
    adapters: what is trained, float32.
  """

  base: Params
  adapters: Params


def init_adapters(key: Array, base: Params, rank: int) -> Params:
  """Adapters that change nothing yet: A is random, B is zero.

  Args:
    key: random key.
    base: the tree that they are for, of arrays or shapes.
    rank: r.

  Raises:
    ValueError: if rank is below 1, or the tree has nothing to adapt.
  """
  if rank < 1:
    raise ValueError(f"rank of the adapters is {rank}; it must be at least 1")
  adapters = {}
  for index, (path, kernel) in enumerate(_adapted(base).items()):
    *layers, fan_in, fan_out = kernel.shape
    draw = jax.random.normal(
      jax.random.fold_in(key, index), (*layers, fan_in, rank)
    )
    adapters[*path, "a"] = draw * fan_in**-0.5
    adapters[*path, "b"] = jnp.zeros((*layers, rank, fan_out))
  if not adapters:
    raise ValueError("this network has no projections that could be adapted")
  return traverse_util.unflatten_dict(adapters)


def factor_axes(
  kernel: tuple[str | None, str | None],
) -> dict[str, tuple[str | None, str | None]]:
  """Names of the axes of A and B, from those of the kernel's two."""
  return {"a": (kernel[0], None), "b": (None, kernel[1])}


def adapter_axes(axes: PyTree, adapters: Params) -> PyTree:
  """Names of the axes of adapters, from those of the base's kernels."""
  kernels = traverse_util.flatten_dict(axes)

  def of(path: tuple[str, ...]) -> PartitionSpec:
    *layers, fan_in, fan_out = kernels[*path[:-1], "kernel"]
    return PartitionSpec(*layers, *factor_axes((fan_in, fan_out))[path[-1]])

  leaves = traverse_util.flatten_dict(adapters)
  return traverse_util.unflatten_dict({path: of(path) for path in leaves})


def merge(params: Adapted) -> Params:
  """One tree that computes the same, in the base's types."""
  leaves = traverse_util.flatten_dict(params.base)
  adapters = traverse_util.flatten_dict(params.adapters)
  for path, kernel in _adapted(params.base).items():
    a, b = (jnp.asarray(adapters[*path, name]) for name in "ab")
    moved = kernel.astype(jnp.float32) + a @ b
    leaves[*path, "kernel"] = moved.astype(kernel.dtype)
  return traverse_util.unflatten_dict(leaves)


def _adapted(base: Params) -> dict[tuple[str, ...], Array]:
  """The kernels that have adapters, by the path of their layer."""
  leaves = traverse_util.flatten_dict(base)
  return {
    path[:-1]: leaf
    for path, leaf in leaves.items()
    if path[-1] == "kernel"
    and path[-2] in ADAPTED
    and any(part.startswith("block") for part in path)
  }
