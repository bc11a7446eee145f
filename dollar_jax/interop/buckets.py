"""Folders in an object store, gs://BUCKET/FOLDER, beside those on disks.

A run may live in one: what is written a piece at a time goes there by epath
and TensorStore, a model through a temporary folder on the disk.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path

from etils import epath

_STORE = "gs://"


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path names a place that is not in the file system."""
  return "://" in os.fspath(path)


def place(path: str | os.PathLike) -> epath.Path:
  """Where a path leads, on a disk or in a bucket.

  Raises:
    ValueError: if it lies in a store that is not supported, or gcsfs, which
      opens it, is not installed.
  """
  if not is_remote(path):
    return epath.Path(path)
  if not os.fspath(path).startswith(_STORE):
    raise ValueError(
      f"{path} cannot be opened; give a folder on a disk, or {_STORE}BUCKET/…"
    )
  found = epath.Path(path)
  try:
    found.exists()
  except ImportError:
    raise ValueError(
      f"{path} cannot be opened without gcsfs; run `pip install gcsfs`, or "
      "mount the bucket with Cloud Storage FUSE and give the folder"
    ) from None
  return found


def on_disk(path: str | os.PathLike) -> Path:
  """A path of the file system.

  Raises:
    ValueError: if it is of an object store.
  """
  if is_remote(path):
    raise ValueError(
      f"{path} is not on a disk; mount the bucket with Cloud Storage FUSE and "
      "give the folder, or copy it"
    )
  return Path(path)


def scratch() -> Path:
  """A new folder on the disk, deleted when the program ends."""
  return Path(tempfile.mkdtemp(dir=_scratch().name))


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="dollar_jax")


def upload(folder: Path, target: epath.Path, last: str) -> None:
  """Puts a folder in the place of another; the file `last` makes it whole."""
  target.rmtree(missing_ok=True)
  files = [file for file in folder.rglob("*") if file.is_file()]
  for file in sorted(files, key=lambda file: (file.name == last, file)):
    copy = target / file.relative_to(folder).as_posix()
    copy.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, copy.open("wb") as sink:
      shutil.copyfileobj(source, sink, 1 << 24)


def download(source: epath.Path) -> Path:
  """A copy of a folder on the disk, for as long as the program runs."""
  folder = scratch() / (source.name or "bucket")
  folder.mkdir()
  for entry in source.iterdir():
    if entry.is_dir():
      download(entry).rename(folder / entry.name)
      continue
    with entry.open("rb") as stream, (folder / entry.name).open("wb") as sink:
      shutil.copyfileobj(stream, sink, 1 << 24)
  return folder
