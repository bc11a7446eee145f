"""What a run keeps in the memory of a host, by arithmetic.

Devices' memory is what a plan measures; this is the memory of the processes
that feed them. Frames being decoded and scored, and what Python and XLA need
themselves, are not counted.
"""

import math

import jax
from jax.sharding import Mesh

from dollar_jax.parallel.mesh import batch_shards
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.outline import Outline
from dollar_jax.train.planning import bytes_of
from dollar_jax.train.state import NetworkState
from dollar_jax.typing import PyTree

FLOAT32 = 4


def host_memory(
  config: TrainConfig, outline: Outline, mesh: Mesh
) -> dict[str, int]:
  """Bytes of the process that has most.

  Returns:
    `processes`; `rows` of a batch that one reads, and its `batch_bytes`;
    `batches` that are read ahead; in bytes, what these take with the one handed
    over and the one in use, `data`; the `frozen` weights of teacher and codec,
    which stay on the host, were they all stored as float32; of what is saved,
    at most what a process' devices hold, `checkpoint`; the weights of the
    `result`; and `peak`, when either of these is made.
  """
  owners = [device.process_index for device in mesh.devices.flat]
  most = max(owners, key=owners.count)
  size = config.data.batch_size // batch_shards(mesh)
  groups = mesh.devices.reshape(batch_shards(mesh), -1)
  rows = size * max(
    sum(any(d.process_index == owner for d in group) for group in groups)
    for owner in set(owners)
  )
  shapes = jax.tree.leaves(outline.batch)
  example = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in shapes)
  batch = rows * example
  count = config.data.ahead.count(batch)
  base, resident = outline.base, outline.task.resident().values()
  frozen = _whole((base.params, base.codec))
  states = [tree for tree in resident if isinstance(tree, NetworkState)]
  saved = jax.tree.leaves(states)
  trained = base.params if config.lora_rank else states[0].params
  found = {
    "processes": len(set(owners)),
    "rows": rows,
    "batch_bytes": batch,
    "batches": count,
    "data": (count + 2) * batch,
    "frozen": frozen,
    "checkpoint": owners.count(most) * sum(map(bytes_of, saved)),
    "result": _whole(trained),
  }
  later = max(found["checkpoint"], found["result"])
  return found | {"peak": found["data"] + frozen + later}


def _whole(tree: PyTree) -> int:
  """Bytes of whole arrays, as float32."""
  return sum(
    FLOAT32 * math.prod(leaf.shape)
    for leaf in jax.tree.leaves(tree)
    if hasattr(leaf, "shape")
  )
