"""Checkpoints: everything that changes, saved in the background by Orbax."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from dollar_jax.interop.buckets import is_remote, place
from dollar_jax.interop.orbax_faults import first_line, quiet_orbax
from dollar_jax.parallel import processes
from dollar_jax.train.config import CheckpointConfig
from dollar_jax.typing import Array, PyTree

_ITEMS = ("state", "data", "description")


class Checkpointer:
  """Saves and restores (state, data iterator) of a run folder.

  A checkpoint becomes visible by one rename when it is whole: killed at any
  moment, the run goes on from the last whole one. A checksum beside the state
  tells a whole one from one whose bytes have changed since.

  Attributes:
    folder: `workdir/checkpoints`.
  """

  def __init__(
    self, workdir: str, config: CheckpointConfig, description: dict[str, Any]
  ):
    """Opens the folder; makes it if needed.

    Args:
      workdir: the run's folder.
      config: how many to keep.
      description: what must be equal for a checkpoint to fit this run
        (task, architecture), kept as JSON beside the state.

    Raises:
      OSError: if the folder cannot be written.
    """
    self.folder = place(workdir) / "checkpoints"
    self._description = json.loads(json.dumps(description))
    quiet_orbax()
    self._manager = ocp.CheckpointManager(
      _absolute(self.folder),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        enable_async_checkpointing=True,
        create=True,
        cleanup_tmp_directories=True,  # what a killed run left half written
      ),
      item_names=_ITEMS,
    )

  def save(self, step: int, state: PyTree, data: grain.DatasetIterator) -> None:
    """Saves without waiting for the disk.

    Raises:
      OSError: if this or the previous save could not be written.
    """
    description = {"run": self._description, "checksum": _checksum(state)}
    with self._naming_failures():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          data=ocp.args.JsonSave(data.get_state()),
          description=ocp.args.JsonSave(description),
        ),
        force=True,  # the caller knows when to save
      )

  def restore(
    self, state: PyTree, data: grain.DatasetIterator
  ) -> tuple[int, PyTree] | None:
    """Restores the newest checkpoint that can be read, with the iterator.

    Newer ones that cannot be read are deleted: their steps are to be saved
    again.

    Args:
      state: a state of the wanted structure, types and shardings.
      data: the iterator; it is moved to where the checkpoint left it.

    Returns:
      (step, state), or None where there is no checkpoint.

    Raises:
      ValueError: if a checkpoint is of another task or architecture, or none
        of those there can be read.
    """
    target = ocp.args.Composite(
      state=ocp.args.StandardRestore(
        jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
      ),
      data=ocp.args.JsonRestore(),
    )
    damaged: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      restored, reason = _try_to_read(
        self._manager, step, lambda: target, self._check_description
      )
      if reason:
        damaged[step] = reason
        continue
      for newer in damaged:
        logging.warning(
          "checkpoint %s cannot be read (%s); going on from the one before, "
          "of step %d",
          self.folder / str(newer),
          damaged[newer],
          step,
        )
        self._manager.delete(newer)
      data.set_state(restored["data"])
      return step, restored["state"]
    if damaged:
      raise ValueError(_none_readable(self.folder, damaged))
    return None

  def _check_description(self, step: int, saved: dict[str, Any]) -> None:
    wrong = _differences(saved, self._description)
    if wrong:
      raise _Mismatch(
        f"checkpoint {self.folder / str(step)} is of another run: "
        + "; ".join(f"{k} was {a!r}, is {b!r}" for k, a, b in wrong)
        + "; use another workdir, or the old settings"
      )

  def wait(self) -> None:
    """Waits until every save is on disk.

    Raises:
      OSError: if one could not be written.
    """
    with self._naming_failures():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Ends the work in the background; call `wait` to learn of failures."""
    try:
      self._manager.close()
    except Exception as error:  # another error is on its way already
      logging.warning("the last checkpoint is lost: %s", first_line(error))

  @contextlib.contextmanager
  def _naming_failures(self) -> Iterator[None]:
    """Makes one OSError of what Orbax and TensorStore raise on a full disk."""
    try:
      yield
    except Exception as error:
      whole = self._manager.all_steps(read=True)
      kept = f"that of step {max(whole)} is whole" if whole else "there is none"
      raise OSError(
        f"a checkpoint could not be written to {self.folder} "
        f"({first_line(error)}); {kept}: make room and run this again"
      ) from error


def read_networks(workdir: str) -> Any:
  """The newest readable checkpoint's networks as plain dicts of numpy arrays.

  They may have been saved on any number of devices.

  Raises:
    ValueError: if there is no checkpoint that can be read.
  """
  folder = place(workdir) / "checkpoints"
  handlers = {
    "state": ocp.StandardCheckpointHandler(),
    "description": ocp.JsonCheckpointHandler(),
  }
  damaged: dict[int, str] = {}
  quiet_orbax()
  with ocp.CheckpointManager(
    _absolute(folder), item_handlers=handlers
  ) as manager:

    def on_host() -> ocp.args.Composite:
      saved = manager.item_metadata(step)["state"].tree
      target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
      return ocp.args.Composite(state=ocp.args.StandardRestore(target))

    for step in sorted(manager.all_steps(), reverse=True):
      saved, reason = _try_to_read(manager, step, on_host)
      if not reason:
        state = saved["state"]
        return state.get("networks", state)
      damaged[step] = reason
      logging.warning(
        "checkpoint %s cannot be read (%s)", folder / str(step), reason
      )
  raise ValueError(_none_readable(folder, damaged))


def _absolute(folder: epath.Path) -> epath.Path:
  return folder if is_remote(folder) else folder.resolve()


class _Mismatch(ValueError):
  """A whole checkpoint, of another run."""


def _try_to_read(
  manager: ocp.CheckpointManager,
  step: int,
  target: Callable[[], ocp.args.Composite],
  check: Callable[[int, dict[str, Any]], None] = lambda step, run: None,
) -> tuple[PyTree, str]:
  """Returns the items of a checkpoint, or why it cannot be read."""
  try:
    args = ocp.args.Composite(description=ocp.args.JsonRestore())
    description = manager.restore(step, args=args)["description"]
    check(step, description["run"])
    items = manager.restore(step, args=target())
    if _checksum(items["state"]) != description["checksum"]:
      return None, "its checksum is wrong"
    return items, ""
  except _Mismatch:
    raise
  except Exception as error:  # a torn file makes a reader raise anything
    return None, first_line(error)


def _checksum(tree: PyTree) -> int:
  """Sum of all words modulo 2**32, whatever their order and sharding."""
  arrays = jax.tree.leaves(tree)
  on_device = [x for x in arrays if isinstance(x, jax.Array)]
  on_host = [np.asarray(x) for x in arrays if not isinstance(x, jax.Array)]
  total = sum(_sum_words_on_host(x) for x in on_host)
  if on_device:
    own = jax.device_get([x for array in on_device for x in _own_sums(array)])
    mine = sum(x.item() for x in own) % 2**32
    everyones = processes.gather_rows(np.array([mine], np.uint32))
    total += int(everyones.sum(dtype=np.uint64))
  return total % 2**32


def _sum_words_on_host(array: np.ndarray) -> int:
  words = array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
  return int(words.sum(dtype=np.uint64))


def _own_sums(array: Array) -> list[Array]:
  """Sums of this process' parts of an array; of equal copies one counts."""
  shards = _sum_parts(array, array.sharding).addressable_shards
  sums = {shard.device: shard.data for shard in shards}
  own = [x.device for x in array.addressable_shards if x.replica_id == 0]
  return [sums[device] for device in own]


# Array by array: one program of a whole state compiles for long. Without any
# collective: of many programs under way, two may wait for each other for ever.
@functools.partial(jax.jit, static_argnames="sharding")
def _sum_parts(array: Array, sharding: Sharding) -> Array:
  """Every device's sum of the words that it has, [devices]."""
  if not isinstance(sharding, NamedSharding):
    return _sum_words(array)
  spread = jax.shard_map(
    _sum_words,
    mesh=sharding.mesh,
    in_specs=sharding.spec,
    out_specs=PartitionSpec(sharding.mesh.axis_names),
    check_vma=False,
  )
  return spread(array)


def _sum_words(array: Array) -> Array:
  if array.dtype != bool:
    kind = f"uint{8 * array.dtype.itemsize}"
    array = jax.lax.bitcast_convert_type(array, kind)
  return jnp.sum(array, dtype=jnp.uint32)[None]


def _differences(
  old: Any, new: Any, name: str = ""
) -> list[tuple[str, Any, Any]]:
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      inner = f"{name}.{key}" if name else key
      out += _differences(old.get(key), new.get(key), inner)
    return out
  return [] if old == new else [(name, old, new)]


def _none_readable(folder: epath.Path, damaged: dict[int, str]) -> str:
  why = f" ({next(iter(damaged.values()))})" if damaged else ""
  return (
    f"none of the checkpoints {sorted(damaged)} in {folder} can be "
    f"read{why}; delete the folder to start anew, or use another workdir"
  )
