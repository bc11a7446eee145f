"""A network's parameters as Orbax checkpoints, a part at a time.

The folder `orbax` holds one checkpoint a part, `00001-of-00014` and so on, so
that a model larger than the memory can be written and read. Together they are
our parameter tree with `scan=False`: one subtree a block.
"""

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dollar_jax.interop.convert import iterate_leaves
from dollar_jax.interop.keymaps import Entry, Keymap
from dollar_jax.interop.orbax_faults import first_line, quiet_orbax
from dollar_jax.interop.weights import LazyTensor, byte_size, plan_shards
from dollar_jax.typing import Params

FOLDER = "orbax"

PART_BYTES = 2**30
"""Most bytes of a part, unless a single leaf is larger. Orbax copies it."""


def is_orbax(folder: Path) -> bool:
  """Whether a network's folder holds its weights as Orbax checkpoints."""
  return (folder / FOLDER).is_dir()


def write_orbax(
  folder: Path, tensors: Mapping[str, Any], keymap: Keymap, template: Params
) -> None:
  """Writes a state dict as our parameter tree.

  Args:
    folder: the network's; gets a folder `orbax`.
    tensors: torch key → tensor; read one at a time.
    keymap: which tensor belongs where, with `scan=False`.
    template: shapes of our tree.

  Raises:
    ValueError: one sentence that names every missing, extra and mis-shaped
      key.
    OSError: if it cannot be written whole.
  """
  quiet_orbax()
  leaves = iterate_leaves(tensors, keymap, template)
  sizes = {e.path: byte_size(tensors[e.torch]) for e in keymap.entries}
  parts = plan_shards(sizes, PART_BYTES)
  for i, paths in enumerate(parts, start=1):
    tree = dict(itertools.islice(leaves, len(paths)))
    part = folder / FOLDER / f"{i:05d}-of-{len(parts):05d}"
    try:
      with _checkpointer() as checkpointer:
        checkpointer.save(part.resolve(), traverse_util.unflatten_dict(tree))
    except Exception as error:  # TensorStore says a full disk in its own way
      raise OSError(first_line(error)) from error


def read_orbax(folder: Path, keymap: Keymap) -> dict[str, LazyTensor]:
  """Opens what `write_orbax` wrote.

  Args:
    folder: the network's.
    keymap: which leaf belongs where, with `scan=False`.

  Returns:
    torch key → tensor in torch's layout, read from disk when it is asked for;
    a leaf that the keymap does not know goes by its path.

  Raises:
    ValueError: if a part is missing or damaged.
  """
  quiet_orbax()
  entries = {entry.path: entry for entry in keymap.entries}
  tensors = {}
  # a part is restored whole, and its tensors are asked for one after another
  restore = functools.lru_cache(maxsize=1)(_restore)
  for part in _parts(folder / FOLDER):
    for path, leaf in _flat(_metadata(part)).items():
      key, entry = "/".join(path), entries.get(path)
      shape = tuple(leaf.shape)
      if entry is not None:
        key, shape = entry.torch, entry.torch_shape(shape)
      read = functools.partial(_read, restore, part, path, entry)
      tensors[key] = LazyTensor(shape, str(leaf.dtype), read)
  return tensors


def _parts(folder: Path) -> list[Path]:
  names = sorted(p.name for p in folder.iterdir() if p.is_dir())
  count = int(names[-1].rpartition("-")[2]) if names else 1
  wanted = [f"{i:05d}-of-{count:05d}" for i in range(1, count + 1)]
  absent = [name for name in wanted if name not in names]
  if absent:
    raise ValueError(
      f"{folder} lacks {len(absent)} of {count} parts, {absent[0]} first; copy "
      "or convert the model again"
    )
  return [folder.resolve() / name for name in wanted]


def _metadata(part: Path) -> Any:
  """The tree of a part, of shapes and types."""
  try:
    with _checkpointer() as checkpointer:
      return checkpointer.metadata(part).item_metadata.tree
  except Exception as error:  # a torn file makes a reader raise anything
    raise _damaged(part, error) from None


def _restore(part: Path) -> dict[tuple[str, ...], np.ndarray]:
  target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _metadata(part))
  try:
    with _checkpointer() as checkpointer:
      return _flat(checkpointer.restore(part, target))
  except Exception as error:  # a torn file makes a reader raise anything
    raise _damaged(part, error) from None


def _damaged(part: Path, error: Exception) -> ValueError:
  return ValueError(
    f"{part} is not a whole Orbax checkpoint ({first_line(error)}); copy or "
    "convert the model again"
  )


def _read(
  restore: Any, part: Path, path: tuple[str, ...], entry: Entry | None
) -> np.ndarray:
  leaf = restore(part)[path]
  return leaf if entry is None else entry.to_torch(leaf)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
  return traverse_util.flatten_dict(tree)


def _checkpointer() -> Any:
  import orbax.checkpoint as ocp  # 0.6 s, only where Orbax is read or written

  return ocp.StandardCheckpointer()
