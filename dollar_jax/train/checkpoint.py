"""Checkpoints: everything that changes, saved in the background by Orbax."""

import json
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from grain.checkpoint import CheckpointRestore, CheckpointSave

from dollar_jax.train.config import CheckpointConfig
from dollar_jax.typing import PyTree


class Checkpointer:
  """Saves and restores (state, data iterator) of a run folder.

  A checkpoint becomes visible by one rename when it is whole: killed at any
  moment, the run goes on from the last whole one.

  Attributes:
    folder: `workdir/checkpoints`.
  """

  def __init__(
    self, workdir: str, config: CheckpointConfig, description: dict[str, Any]
  ):
    """Opens the folder; makes it if needed.

    Args:
      workdir: the run's folder.
      config: when to save, how many to keep.
      description: what must be equal for a checkpoint to fit this run
        (task, architecture), kept as JSON beside the state.

    Raises:
      OSError: if the folder cannot be written.
    """
    self.folder = epath.Path(workdir) / "checkpoints"
    self._description = json.loads(json.dumps(description))
    self._manager = ocp.CheckpointManager(
      self.folder.resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        save_interval_steps=config.every,
        enable_async_checkpointing=True,
        create=True,
      ),
      item_names=("state", "data", "description"),
    )

  def save(
    self,
    step: int,
    state: PyTree,
    data: grain.DatasetIterator,
    last: bool = False,
  ) -> None:
    """Saves if `step` is due (or `last`), without waiting for the disk.

    Raises:
      OSError: if this or the previous save could not be written.
    """
    if last and self._manager.latest_step() == step:
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=CheckpointSave(data),
        description=ocp.args.JsonSave(self._description),
      ),
      force=last,
    )

  def restore(
    self, state: PyTree, data: grain.DatasetIterator
  ) -> tuple[int, PyTree] | None:
    """Restores the newest checkpoint that can be read, with the iterator.

    Args:
      state: a state of the wanted structure, types and shardings.
      data: the iterator; it is moved to where the checkpoint left it.

    Returns:
      (step, state), or None where there is no checkpoint.

    Raises:
      ValueError: if a checkpoint is of another task or architecture, or none
        of those there can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    for step in steps:
      try:
        self._check_description(step)
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            data=CheckpointRestore(data),
          ),
        )
      except _Mismatch as error:
        raise ValueError(str(error)) from None
      except Exception as error:  # whatever a torn file makes a reader raise
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        logging.warning(
          "checkpoint %s cannot be read (%s); trying the one before",
          self.folder / str(step),
          first[0][:200],
        )
        continue
      for newer in (s for s in steps if s > step):
        self._manager.delete(newer)
      return step, restored["state"]
    if steps:
      raise ValueError(
        f"none of the checkpoints {steps} in {self.folder} can be read; "
        "delete the folder to start anew, or use another workdir"
      )
    return None

  def _check_description(self, step: int) -> None:
    saved = self._manager.restore(
      step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
    )["description"]
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
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and closes the folder."""
    self._manager.close()


class _Mismatch(Exception):
  """A whole checkpoint, of another run."""


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


def read_networks(workdir: str) -> Any:
  """The newest readable checkpoint's networks as plain dicts of arrays.

  Raises:
    ValueError: if there is no checkpoint that can be read.
  """
  folder = epath.Path(workdir) / "checkpoints"
  with ocp.CheckpointManager(
    folder.resolve(), item_names=("state", "data", "description")
  ) as manager:
    for step in sorted(manager.all_steps(), reverse=True):
      try:
        saved = manager.restore(
          step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )["state"]
      except Exception as error:  # whatever a torn file makes a reader raise
        logging.warning("checkpoint %s cannot be read: %s", step, error)
        continue
      return saved.get("networks", saved)
  raise ValueError(f"{folder} holds no checkpoint that can be read")
