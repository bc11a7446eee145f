"""PyTorch weights ⇄ our parameter trees, by a keymap, bit for bit.

State dicts are mappings from torch key to array; `read_weights` and
`write_weights` keep them in safetensors files. Pickles are never opened.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from flax.core import meta

from dollar_jax.interop.keymaps import Keymap
from dollar_jax.typing import Params

SHOWN = 6
"""How many keys of each kind of trouble an error prints."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class StoredTensor:
  """One tensor of an open safetensors file; `numpy.asarray` reads it.

  Attributes:
    shape: its shape.
    dtype: its type by numpy's name, or by safetensors' if we do not know it.
  """

  def __init__(self, file: Any, key: str):
    view = file.get_slice(key)
    self.shape = tuple(view.get_shape())
    self.dtype = FLOATS.get(view.get_dtype(), view.get_dtype())
    self._file, self._key = file, key

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    """Reads the tensor."""
    array = self._file.get_tensor(self._key)
    return array if dtype is None else array.astype(dtype)


def read_weights(folder: Path, stem: str) -> dict[str, StoredTensor]:
  """Opens `stem.safetensors`, or the shards that its index names.

  Args:
    folder: where the files lie.
    stem: file name without its ending.

  Returns:
    key → tensor, read from disk when it is asked for.

  Raises:
    ValueError: if a file is missing, damaged, a pickle, or holds a type other
      than float32, float16 and bfloat16.
  """
  index = folder / f"{stem}.safetensors.index.json"
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
      raise ValueError(f"{index} is damaged; copy it again") from None
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
      raise ValueError(
        f"{folder} lacks {len(absent)} of {len(names)} weight files: "
        f"{', '.join(absent[:SHOWN])}; finish the download"
      )
  else:
    names = [f"{stem}.safetensors"]
    if not (folder / names[0]).is_file():
      raise ValueError(_why_absent(folder, names[0]))
  tensors = {}
  for name in names:
    file = folder / name
    try:
      opened = safetensors.safe_open(file, framework="numpy")
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{file} ({file.stat().st_size} bytes) is not a whole safetensors "
        f"file ({error}); copy it again"
      ) from None
    for key in opened.keys():  # noqa: SIM118 (not a mapping)
      tensors[key] = StoredTensor(opened, key)
  odd = sorted(k for k in tensors if tensors[k].dtype not in FLOATS.values())
  if odd:
    raise ValueError(
      f"{folder} holds {odd[0]} as {tensors[odd[0]].dtype}; only float32, "
      "float16 and bfloat16 weights can be read: store the model as one of "
      "these"
    )
  return tensors


def write_weights(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file.

  Raises:
    OSError: if it cannot be written whole.
  """
  # the format holds plain row-major memory and takes our word for it
  plain = {key: np.ascontiguousarray(tensors[key]) for key in tensors}
  try:
    safetensors.numpy.save_file(plain, file, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    code = re.search(r"\(os error (\d+)\)", str(error))
    if code is None:
      raise OSError(str(error)) from error
    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
  # the writer makes files that only their owner can read
  os.chmod(file, file.parent.stat().st_mode & 0o666)


def _why_absent(folder: Path, name: str) -> str:
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
  if not pickles:
    return f"{folder} has no {name}; copy or export the model again"
  return (
    f"{folder} holds pickled weights ({pickles[0]}), which can run any code "
    f"and are not read; where you trust them, write {name} with safetensors."
    "torch.save_file(torch.load(FILE, weights_only=True), NAME)"
  )


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
  leaves = dict(_iterate(tensors, keymap, template))
  return traverse_util.unflatten_dict(leaves)


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


def cast(tree: Any, dtype: Any) -> Any:
  """Casts every floating-point leaf to `dtype`; None returns `tree` as is."""
  if dtype is None:
    return tree
  dtype = jax.numpy.dtype(dtype)

  def convert(leaf: Any) -> Any:
    floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return leaf.astype(dtype) if floating else leaf

  return jax.tree.map(convert, tree)


def _iterate(
  tensors: Mapping[str, np.ndarray], keymap: Keymap, template: Params
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  """Yields our leaves one by one, after checking all of them."""
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
