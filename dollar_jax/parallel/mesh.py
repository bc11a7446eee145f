"""The device mesh: its axes, and which rows of a batch belong to a process.

Four axes, in this order: "data" and "fsdp" split the batch, "fsdp" the
parameters too, "tensor" heads and hidden widths, "context" the tokens. Slices
of a pod that only a slow network connects are along "data".
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dollar_jax.parallel.mesh_config import MeshConfig

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
"""Those that a batch is split over."""

BATCH_ONLY = MeshConfig()
"""All devices along "data"."""


def make_mesh(
  config: MeshConfig = BATCH_ONLY, devices: Sequence[jax.Device] = ()
) -> Mesh:
  """Arranges devices, all of them unless told otherwise.

  Raises:
    ValueError: if the axes do not divide the number of devices.
  """
  devices = list(devices or jax.devices())
  sizes = mesh_shape(config, len(devices))
  if config.slices > 1:
    within = (sizes[0] // config.slices, *sizes[1:])
    arranged = mesh_utils.create_hybrid_device_mesh(
      within,
      (config.slices, 1, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  elif devices[0].platform == "tpu":
    arranged = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  else:
    arranged = np.array(devices).reshape(sizes)
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def platform_of(mesh: Mesh) -> str:
  """Returns what its devices are: "cpu", "gpu" or "tpu"."""
  return mesh.devices.flat[0].platform


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int, int]:
  """Sizes of the four axes on a number of devices.

  Raises:
    ValueError: if they do not divide it.
  """
  for name in AXES[1:]:
    size = getattr(config, name)
    if size < 1 or devices % size:
      raise ValueError(
        f"config.mesh.{name} is {size}, which does not divide {devices} "
        f"devices; use {_nearest(size, devices)}"
      )
  inner = config.fsdp * config.tensor * config.context
  if devices % inner:
    raise ValueError(
      f"config.mesh has fsdp x tensor x context = {inner}, which does not "
      f"divide {devices} devices; make it {_nearest(inner, devices)}"
    )
  data = config.data or devices // inner
  if data * inner != devices:
    raise ValueError(
      f"config.mesh has data x fsdp x tensor x context = {data * inner}, but "
      f"there are {devices} devices; set config.mesh.data to "
      f"{devices // inner}, or to 0, which takes what is left"
    )
  if config.slices < 1 or data % config.slices:
    raise ValueError(
      f"config.mesh.slices is {config.slices}, which does not divide the "
      f"{data} devices along data; use {_nearest(config.slices, data)}"
    )
  return data, config.fsdp, config.tensor, config.context


def batch_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Checks that a global batch spreads evenly.

  Raises:
    ValueError: if it does not divide among the devices of data and fsdp.
  """
  shards = batch_shards(mesh)
  if batch_size % shards:
    raise ValueError(
      f"batch size {batch_size} does not divide among {shards} devices; use "
      f"a multiple of {shards}"
    )


def process_rows(batch_size: int, mesh: Mesh) -> list[int]:
  """Which rows of a global batch this process' devices need, in order.

  Devices that share the tokens or the heads of a video need the same rows,
  whatever their processes are.

  Raises:
    ValueError: as `check_batch`.
  """
  check_batch(batch_size, mesh)
  size = batch_size // batch_shards(mesh)
  flat = mesh.devices.reshape(batch_shards(mesh), -1)
  mine = jax.process_index()
  return [
    shard * size + row
    for shard, devices in enumerate(flat)
    if any(device.process_index == mine for device in devices)
    for row in range(size)
  ]


def _nearest(value: int, total: int) -> str:
  """The divisors of `total` below and above a value."""
  divisors = [n for n in range(1, total + 1) if total % n == 0]
  below = [n for n in divisors if n < value][-1:]
  above = [n for n in divisors if n > value][:1]
  return " or ".join(map(str, below + above)) or str(total)
