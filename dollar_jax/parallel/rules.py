"""Which axis of an array lies along which axis of the mesh.

Networks name the axes of their parameters and of the activations between
blocks; the table here says where each name goes, and everything that is as
large as the parameters (moments, averages) follows them. A strategy is a choice
of sizes of the mesh's axes: along one of size 1 nothing is split.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dollar_jax.parallel.mesh import BATCH_AXES
from dollar_jax.typing import Array, PyTree

RULES: dict[str, tuple[str, ...]] = {
  # activations
  "batch": BATCH_AXES,
  "tokens": ("context",),
  "embed_act": (),
  # parameters
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "layers": (),
  "norm": (),
  "patch": (),
  "text": (),
}
"""Logical axis → the mesh axes that it is split over."""

PARAMETER_AXIS = "fsdp"
"""The mesh axis that parameters are stored split over, and gathered from."""


def spec(
  names: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """Where the axes of one array go.

  An axis that does not divide among the devices is split over fewer of them, or
  not at all.

  Args:
    names: a logical name an axis; None is not split.
    shape: the array's.
    mesh: of the axes in `mesh.AXES`.
  """
  parts = []
  for name, size in zip(names, shape, strict=True):
    used, pieces = [], 1
    for axis in RULES[name] if name else ():
      devices = mesh.shape[axis]
      if devices > 1 and size % (pieces * devices) == 0:
        used.append(axis)
        pieces *= devices
    parts.append(tuple(used) or None)
  return PartitionSpec(*parts)


def constrain(x: Array, names: Sequence[str | None]) -> Array:
  """Keeps an activation where the table says; without a mesh, as it is."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def whole(x: Array, names: Sequence[str | None]) -> Array:
  """A parameter with all of it that "fsdp" splits, for a layer to compute with.

  Said in so many words, as the compiler may otherwise split the product
  instead and add up activations. The gradient goes back to where the
  parameter lies. Without a mesh, `x` as it is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  kept = [
    name if name and PARAMETER_AXIS not in RULES[name] else None
    for name in names
  ]
  here, there = (spec(n, x.shape, mesh) for n in (kept, names))
  return _gather(x, here, there)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, here: PartitionSpec, there: PartitionSpec) -> Array:
  del there
  return jax.lax.with_sharding_constraint(x, here)


def _gather_forward(
  x: Array, here: PartitionSpec, there: PartitionSpec
) -> tuple[Array, None]:
  return _gather(x, here, there), None


def _gather_backward(
  here: PartitionSpec, there: PartitionSpec, _: None, grad: Array
) -> tuple[Array]:
  del here
  return (jax.lax.with_sharding_constraint(grad, there),)


_gather.defvjp(_gather_forward, _gather_backward)


def logical_axes(boxed: PyTree) -> PyTree:
  """Names of the axes of parameters that Linen made, as PartitionSpecs."""
  return nn.get_partition_spec(boxed)


def param_shardings(axes: PyTree, shapes: PyTree, mesh: Mesh) -> PyTree:
  """Shardings of parameters.

  Args:
    axes: see `logical_axes`.
    shapes: the same tree, of arrays or shapes.
    mesh: where to.
  """

  def place(names: PartitionSpec, leaf: Any) -> NamedSharding:
    padded = [*names, *[None] * (len(leaf.shape) - len(names))]
    return NamedSharding(mesh, spec(padded, leaf.shape, mesh))

  is_leaf = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
  return jax.tree.map(place, axes, shapes, is_leaf=is_leaf)


def like_params(tree: PyTree, params: PyTree, mesh: Mesh) -> PyTree:
  """Shardings of a tree that holds copies of a network's parameters.

  A leaf whose path ends as a parameter's does, and that has its shape, is a
  moment or an average of it and lies where it lies; all others (counts) are on
  every device.

  Args:
    tree: of arrays or shapes, such as an optimiser's state.
    params: of `jax.ShapeDtypeStruct` with shardings.
    mesh: where to.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  known = {_names(path): leaf for path, leaf in leaves}

  def place(path: tuple, leaf: Any) -> NamedSharding:
    names = _names(path)
    for start in range(len(names)):
      param = known.get(names[start:])
      if param is not None and param.shape == leaf.shape:
        return param.sharding
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, tree)


def placed(tree: PyTree, shardings: PyTree, dtype: Any = None) -> PyTree:
  """Shapes of arrays that lie where they belong.

  Args:
    tree: of arrays or shapes.
    shardings: a tree, or one for all.
    dtype: the arrays' type there; None keeps theirs.
  """
  if isinstance(shardings, NamedSharding):
    one = shardings
    shardings = jax.tree.map(lambda _: one, tree)

  def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    kind = leaf.dtype if dtype is None else np.dtype(dtype)
    return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)

  return jax.tree.map(place, tree, shardings)


def shardings_of(tree: PyTree) -> PyTree:
  """Where the leaves of a tree lie, or are to lie."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def put(tree: PyTree, shardings: PyTree) -> PyTree:
  """Puts host arrays, the same in every process, where they belong.

  Each process copies only what its devices hold. `shardings` is a tree, or one
  for all.
  """
  if isinstance(shardings, NamedSharding):
    one = shardings
    shardings = jax.tree.map(lambda _: one, tree)

  def place(array: Any, sharding: NamedSharding) -> Array:
    if jax.process_count() == 1:
      return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(place, tree, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
  """Rows split over the devices that share a batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def key_shape() -> jax.ShapeDtypeStruct:
  """Shape of a random key, which is committed to no device."""
  return jax.eval_shape(lambda: jax.random.key(0))


def over_all_devices(x: Array, mesh: Mesh) -> Array:
  """Spreads rows [B, ...] over every axis of a mesh that they divide among."""
  axes = [*BATCH_AXES, *(a for a in mesh.axis_names if a not in BATCH_AXES)]
  used, pieces = [], 1
  for axis in axes:
    if x.shape[0] % (pieces * mesh.shape[axis]) == 0:
      used.append(axis)
      pieces *= mesh.shape[axis]
  if pieces == 1:
    return x
  place = NamedSharding(mesh, PartitionSpec(tuple(used)))
  return jax.lax.with_sharding_constraint(x, place)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Puts a batch [B, ...] on the devices, of which each process has its rows.

  Args:
    batch: this process' rows; see `mesh.process_rows`.
    mesh: where to.
  """
  sharding = by_batch(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def _names(path: tuple) -> tuple[str, ...]:
  return tuple(
    str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
    for key in path
  )
