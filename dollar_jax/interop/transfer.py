"""Model folders with safetensors weights ⇄ those with Orbax checkpoints.

Tensors pass one by one, so that a model larger than the memory can be moved.
Everything but the transformers is copied as it is.
"""

import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.convert import iterate_leaves, narrow
from dollar_jax.interop.folders import (
  check_source,
  check_target,
  replace_folder,
)
from dollar_jax.interop.networks import (
  WEIGHTS,
  open_weights,
  read_config,
  read_form,
  template,
)
from dollar_jax.interop.orbax_weights import FOLDER, is_orbax, write_orbax
from dollar_jax.interop.weights import LazyTensor, write_weights


def transfer(
  source: str | os.PathLike,
  out: str | os.PathLike,
  dtype: str | None = None,
  progress: bool = False,
) -> str:
  """Writes a model folder anew, with its weights in the other form.

  Args:
    source: a pipeline or transformer folder.
    out: the new one; a model there is replaced, if all goes well.
    dtype: stores transformers as "float32", "float16" or "bfloat16"; None
      keeps what is stored.
    progress: whether to show a bar of tensors.

  Returns:
    The form that was written, "Orbax" or "safetensors".

  Raises:
    ValueError: if `source` is not a whole model, or `out` no place for one.
    OSError: if the disk is full or the place not writable.
  """
  source, out = check_source(source), on_disk(out).resolve()
  if out.is_relative_to(source.resolve()):
    raise ValueError(f"{out} lies in the model {source}; give another place")
  check_target(out)
  networks = _networks(source)
  to_orbax = not is_orbax(networks[0])
  with replace_folder(out) as fresh:
    for file in _other_files(source):
      (fresh / file).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source / file, fresh / file)
    for network in networks:
      target = fresh / network.relative_to(source)
      tensors = _narrowed(open_weights(network), dtype)
      with tqdm(
        total=len(tensors), desc=target.name, disable=None if progress else True
      ) as bar:
        tensors = {k: _counted(x, bar) for k, x in tensors.items()}
        form, config = read_form(network), read_config(network, scan=False)
        fit = form.keymap(config), template(form.module(config))
        if to_orbax:
          write_orbax(target, tensors, *fit)
        else:
          iterate_leaves(tensors, *fit)  # checks that they are all there
          write_weights(target, WEIGHTS, tensors)
  return "Orbax" if to_orbax else "safetensors"


def differences(
  source: str | os.PathLike,
  out: str | os.PathLike,
  dtype: str | None = None,
  progress: bool = False,
) -> list[str]:
  """What is not the same, bit for bit, in two model folders.

  Args:
    source: the one.
    out: the other, whatever the form of its weights.
    dtype: what transformers were stored as; None is as in `source`.
    progress: whether to show a bar of tensors.

  Returns:
    Names of files and of tensors that differ or lie in one of them only.

  Raises:
    ValueError: if one of them is not a whole model.
  """
  source, out = check_source(source), check_source(out)
  ours, theirs = set(_other_files(source)), set(_other_files(out))
  wrong = [str(file) for file in sorted(ours ^ theirs)]
  for file in sorted(ours & theirs):
    if not filecmp.cmp(source / file, out / file, shallow=False):
      wrong.append(str(file))
  for network in _networks(source):
    name = network.relative_to(source)
    before = _narrowed(open_weights(network), dtype)
    after = open_weights(out / name)
    wrong += [f"{name}: {k}" for k in sorted(before.keys() ^ after.keys())]
    # a part of Orbax is read whole: one after another, each of them once
    order = after if is_orbax(out / name) else before
    keys = [key for key in order if key in before and key in after]
    for key in tqdm(keys, "verify", disable=None if progress else True):
      a, b = np.asarray(before[key]), np.asarray(after[key])
      same = a.dtype == b.dtype and a.shape == b.shape
      if not same or a.tobytes() != b.tobytes():
        wrong.append(f"{name}: {key}")
  return wrong


def _networks(model: Path) -> list[Path]:
  """Folders of the transformers in a model, itself if it is one alone."""
  inside = sorted(p for p in model.glob("transformer*") if p.is_dir())
  return inside or [model]


def _other_files(model: Path) -> Iterator[Path]:
  """Files that are copied, relative to the model's folder."""
  weights = {
    file
    for network in _networks(model)
    for pattern in (f"{WEIGHTS}*.safetensors*", f"{FOLDER}/**/*")
    for file in network.glob(pattern)
  }
  for file in model.rglob("*"):
    hidden = any(p.startswith(".") for p in file.relative_to(model).parts)
    if file.is_file() and not hidden and file not in weights:
      yield file.relative_to(model)


def _narrowed(
  tensors: Mapping[str, LazyTensor], dtype: str | None
) -> dict[str, LazyTensor]:
  if dtype is None:
    return dict(tensors)

  def cast(key: str, tensor: LazyTensor) -> LazyTensor:
    def read() -> np.ndarray:
      return narrow(key, np.asarray(tensor), dtype)

    return LazyTensor(tensor.shape, dtype, read)

  return {key: cast(key, tensor) for key, tensor in tensors.items()}


def _counted(tensor: LazyTensor, bar: Any) -> LazyTensor:
  """A tensor that moves a progress bar when it is read."""

  def read() -> np.ndarray:
    bar.update()
    return np.asarray(tensor)

  return LazyTensor(tensor.shape, tensor.dtype, read)
