"""PyTorch weights ⇄ our parameter trees, by a keymap, bit for bit.

State dicts are mappings from torch key to array; `weights` keeps them in files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from flax.core import meta

from dollar_jax.files import DTYPES
from dollar_jax.interop.keymaps import Entry, Keymap
from dollar_jax.typing import Params

SHOWN = 6
"""How many keys of each kind of trouble an error prints."""


def torch_to_tree(
  tensors: Mapping[str, np.ndarray], keymap: Keymap, template: Params
) -> Params:
  """Builds our parameter tree from a torch state dict.

  Every value keeps its type and bits. Tensors are read one at a time, so a
  mapping that reads from disk on access never holds the file twice.

  Args:
    tensors: torch key → array in torch's layout. Values need `shape` and
      `dtype`; `numpy.asarray` makes the array.
    keymap: which tensor belongs where.
    template: our tree, of arrays or of `jax.ShapeDtypeStruct`; only its paths
      and shapes are read.

  Returns:
    A nested dict of numpy arrays.

  Raises:
    ValueError: one sentence that names every missing, extra and mis-shaped
      key, and stacked layers whose types differ.
  """
  leaves = dict(iterate_leaves(tensors, keymap, template))
  return traverse_util.unflatten_dict(leaves)


def iterate_leaves(
  tensors: Mapping[str, np.ndarray], keymap: Keymap, template: Params
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  """Checks a state dict, then yields (path, leaf) of our tree one by one.

  They come in the order of the keymap. Arguments and errors are those of
  `torch_to_tree`.
  """
  shapes = _shapes(template)
  paths = keymap.by_path()
  assert paths.keys() == shapes.keys(), (
    f"{keymap.name}: the keymap and our module disagree about "
    f"{sorted(paths.keys() ^ shapes.keys())}"
  )
  wanted = {e.torch: e.torch_shape(shapes[e.path]) for e in keymap.entries}
  wrong = []
  for key in tensors.keys() & wanted.keys():
    found = tuple(tensors[key].shape)
    if found != wanted[key]:
      wrong.append(f"{key} is {found}, expected {wanted[key]}")
  mixed = []
  for path, entries in paths.items():
    present = [e for e in entries if e.torch in tensors]
    dtypes = {str(tensors[e.torch].dtype) for e in present}
    if len(dtypes) > 1:
      mixed.append(f"{'/'.join(path)} ({', '.join(sorted(dtypes))})")
  _raise_if_any(
    f"the weights are not those of this {keymap.name}",
    missing=wanted.keys() - tensors.keys(),
    extra=tensors.keys() - wanted.keys(),
    mis_shaped=wrong,
    mixed=mixed,
    remedy="use the config.json and the weights of one and the same model",
  )
  return _read_leaves(tensors, paths, shapes)


def tree_to_torch(
  params: Params, keymap: Keymap, template: Params | None = None
) -> dict[str, np.ndarray]:
  """Builds a torch state dict from our parameter tree; types are kept.

  Args:
    params: our tree.
    keymap: which leaf belongs where.
    template: our tree of arrays or `jax.ShapeDtypeStruct`, to check shapes
      against; without it only paths and the number of layers are checked.

  Returns:
    torch key → contiguous numpy array in torch's layout.

  Raises:
    ValueError: one sentence that names every leaf that is missing, extra or
      mis-shaped.
  """
  leaves = _flatten(params)
  paths = keymap.by_path()
  expected = _shapes(template) if template is not None else {}
  wrong = []
  for path in leaves.keys() & paths.keys():
    shape = tuple(leaves[path].shape)
    wanted = expected.get(path, shape)
    if paths[path][0].layer is not None:
      wanted = (len(paths[path]), *wanted[1:])
    if shape != wanted:
      wrong.append(f"{'/'.join(path)} is {shape}, expected {wanted}")
  _raise_if_any(
    f"the parameters are not those of this {keymap.name}",
    missing=["/".join(p) for p in paths.keys() - leaves.keys()],
    extra=["/".join(p) for p in leaves.keys() - paths.keys()],
    mis_shaped=wrong,
    remedy="give the parameters that the denoiser's config describes",
  )
  tensors = {}
  for path, entries in paths.items():
    leaf = np.asarray(leaves[path])
    for entry in entries:
      layer = leaf if entry.layer is None else leaf[entry.layer]
      # safetensors copies memory as it lies, so strides must be plain
      tensors[entry.torch] = np.ascontiguousarray(entry.to_torch(layer))
  return tensors


def narrow(key: str, array: np.ndarray, dtype: str | None) -> np.ndarray:
  """Casts a tensor to be stored; None keeps its type.

  Args:
    key: its name, for the error.
    array: the tensor.
    dtype: one of `DTYPES`, or None.

  Raises:
    ValueError: for another type, or if a value is too large for it.
  """
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}; use one of {DTYPES} or None")
  with np.errstate(over="ignore"):
    stored = cast(array, dtype)
  lost = np.isfinite(array) & ~np.isfinite(stored)
  if np.any(lost):
    raise ValueError(
      f"{key} has values up to {np.abs(array[lost]).max():.3g}, too large for "
      f"{dtype}; store this model as bfloat16 or float32"
    )
  return stored


def cast(tree: Any, dtype: Any) -> Any:
  """Casts every floating-point leaf to `dtype`; None returns `tree` as is."""
  if dtype is None:
    return tree
  dtype = jax.numpy.dtype(dtype)

  def convert(leaf: Any) -> Any:
    floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    same = leaf.dtype == dtype or not floating
    return leaf if same else leaf.astype(dtype)

  return jax.tree.map(convert, tree)


def _read_leaves(
  tensors: Mapping[str, np.ndarray],
  paths: Mapping[tuple[str, ...], list[Entry]],
  shapes: Mapping[tuple[str, ...], tuple[int, ...]],
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  for path, entries in paths.items():
    if entries[0].layer is None:
      array = entries[0].to_ours(np.asarray(tensors[entries[0].torch]))
      yield path, np.ascontiguousarray(array)
      continue
    first = np.asarray(tensors[entries[0].torch])
    stacked = np.empty(shapes[path], first.dtype)
    for entry in entries:
      stacked[entry.layer] = entry.to_ours(np.asarray(tensors[entry.torch]))
    yield path, stacked


def _flatten(tree: Params) -> dict[tuple[str, ...], Any]:
  return traverse_util.flatten_dict(meta.unbox(dict(tree)))


def _shapes(tree: Params) -> dict[tuple[str, ...], tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in _flatten(tree).items()}


def _raise_if_any(
  what: str,
  *,
  missing: Sequence[str],
  extra: Sequence[str],
  mis_shaped: Sequence[str],
  mixed: Sequence[str] = (),
  remedy: str,
) -> None:
  found = {
    "missing": missing,
    "extra": extra,
    "mis-shaped": mis_shaped,
    "of types that differ between layers": mixed,
  }
  parts = []
  for kind, names in found.items():
    if names:
      names = sorted(names)
      shown = ", ".join(names[:SHOWN])
      if len(names) > SHOWN:
        shown += f" and {len(names) - SHOWN} more"
      parts.append(f"{len(names)} {kind}: {shown}")
  if parts:
    raise ValueError(f"{what}: {'; '.join(parts)}; {remedy}")
