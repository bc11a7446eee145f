"""The device mesh, and putting arrays on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dollar_jax.typing import PyTree


def make_mesh() -> Mesh:
  """All devices along one axis, "data"."""
  return jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts a copy of every array on every device."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Checks that a global batch spreads evenly.

  Raises:
    ValueError: if it does not divide by the devices of the data axis.
  """
  devices = mesh.shape["data"]
  if batch_size % devices:
    raise ValueError(
      f"batch size {batch_size} does not divide among {devices} devices; use "
      f"a multiple of {devices}"
    )


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Splits every array [B, ...] along its first axis over "data".

  Raises:
    ValueError: if B does not divide by the devices of the data axis.
  """
  check_batch(len(jax.tree.leaves(batch)[0]), mesh)
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )
