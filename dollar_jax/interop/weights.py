"""State dicts in safetensors files, read and written a part at a time.

A state dict is a mapping from torch key to something with `shape` and `dtype`
of which `numpy.asarray` makes the array. Pickles are never opened.
"""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dollar_jax.interop.folders import PICKLES, write_json

SHOWN = 6
"""How many files an error names."""

SHARD_BYTES = 2 * 2**30
"""Most bytes of one file, unless a single tensor is larger."""

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor that `numpy.asarray` reads, anew each time.

  Attributes:
    shape: its shape.
    dtype: its type by numpy's name, or by the file's if we do not know it.
    read: makes the array.
  """

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    """Reads the tensor."""
    array = self.read()
    return array if dtype is None else array.astype(dtype)


def read_weights(folder: Path, stem: str) -> dict[str, LazyTensor]:
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
      tensors |= _open(file)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{file} ({file.stat().st_size} bytes) is not a whole safetensors "
        f"file ({error}); copy it again"
      ) from None
  odd = sorted(k for k in tensors if tensors[k].dtype not in FLOATS.values())
  if odd:
    raise ValueError(
      f"{folder} holds {odd[0]} as {tensors[odd[0]].dtype}; only float32, "
      "float16 and bfloat16 weights can be read: store the model as one of "
      "these"
    )
  return tensors


def write_weights(folder: Path, stem: str, tensors: Mapping[str, Any]) -> None:
  """Writes a state dict, in shards with an index where it is large.

  Holds one shard at a time, so that `tensors` may read from disk.

  Raises:
    OSError: if it cannot be written whole.
  """
  sizes = {key: byte_size(tensor) for key, tensor in tensors.items()}
  shards = plan_shards(sizes, SHARD_BYTES)
  names = [f"{stem}.safetensors"]
  if len(shards) > 1:
    names = [
      f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
      for i in range(1, len(shards) + 1)
    ]
    index = {
      "metadata": {"total_size": sum(sizes.values())},
      "weight_map": {
        key: name
        for name, keys in zip(names, shards, strict=True)
        for key in keys
      },
    }
    write_json(folder / f"{stem}.safetensors.index.json", index)
  for name, keys in zip(names, shards, strict=True):
    _write_file(folder / name, {key: tensors[key] for key in keys})


def byte_size(tensor: Any) -> int:
  """Bytes of a tensor, which is not read."""
  return math.prod(tensor.shape) * jnp.dtype(tensor.dtype).itemsize


def plan_shards(sizes: Mapping[Any, int], limit: int) -> list[list[Any]]:
  """Cuts a list of things into runs of at most `limit` bytes, in order."""
  shards, room = [[]], limit
  for key, size in sizes.items():
    if size > room and shards[-1]:
      shards.append([])
      room = limit
    shards[-1].append(key)
    room -= size
  return shards


def _open(file: Path) -> dict[str, LazyTensor]:
  """The tensors of one file, which is mapped only while one is read.

  What of a mapped file was read counts as memory of the process.
  """

  def read(key: str) -> np.ndarray:
    with safetensors.safe_open(file, framework="numpy") as opened:
      return opened.get_tensor(key)

  tensors = {}
  with safetensors.safe_open(file, framework="numpy") as opened:
    for key in opened.keys():  # noqa: SIM118 (not a mapping)
      view = opened.get_slice(key)
      kind = FLOATS.get(view.get_dtype(), view.get_dtype())
      tensors[key] = LazyTensor(
        tuple(view.get_shape()), kind, functools.partial(read, key)
      )
  return tensors


def _write_file(file: Path, tensors: Mapping[str, Any]) -> None:
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
