"""Folders of a model: written whole or not at all, read with clear errors."""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dollar_jax.files import write_text
from dollar_jax.interop.buckets import is_remote, on_disk

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that can run any code when they are read."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What a model on the Hugging Face hub can be called."""


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
  """Gives a new folder that takes the place of `path` if all goes well.

  Raises:
    OSError: if it cannot be written; what is at `path` stays as it was.
  """
  tag = secrets.token_hex(4)
  fresh = path.with_name(f".{path.name}.{tag}.new")
  old = path.with_name(f".{path.name}.{tag}.old")
  try:
    fresh.mkdir(parents=True)
    yield fresh
    for file in fresh.rglob("*"):  # some file systems report a full disk late
      if file.is_file():
        with open(file, "rb") as handle:
          os.fsync(handle.fileno())
    if path.exists():
      path.rename(old)
    try:
      fresh.rename(path)
    except OSError:
      if old.exists():
        old.rename(path)
      raise
  except OSError as error:
    reason = error.strerror or error
    failure = OSError(
      f"could not save the model to {path}: {reason}; nothing "
      "there was changed: make room or choose another place"
    )
    failure.errno = error.errno
    raise failure from error
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
  shutil.rmtree(old, ignore_errors=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
  """Writes a JSON object, whole or not at all; makes the folder it is in."""
  text = json.dumps(content, indent=2) + "\n"
  if is_remote(file):  # an object is there once it is whole
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
  else:
    write_text(file, text)


def read_json(file: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    ValueError: if the file is missing or holds none.
  """
  if not file.is_file():
    raise ValueError(f"{file} is missing; copy or export the model again")
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is not JSON ({error}); copy it again") from None
  if type(content) is not dict:
    raise ValueError(f"{file} holds no JSON object; copy it again")
  return content


def check_source(path: str | os.PathLike) -> Path:
  """The folder of a pipeline or a transformer.

  Args:
    path: the folder; or a model's name on the Hugging Face hub, OWNER/NAME,
      if it lies in the user's cache. Nothing is downloaded.

  Raises:
    ValueError: if it is neither.
  """
  path = on_disk(path)
  if path.suffix in PICKLES and path.is_file():
    raise ValueError(
      f"{path} is a pickle, which can run any code and is not read; give a "
      "diffusers folder with safetensors weights"
    )
  if not path.is_dir():
    path = _from_cache(path)
  pipeline = (path / "transformer").is_dir()
  if not pipeline and not (path / "config.json").is_file():
    raise ValueError(
      f"{path} has neither transformer/ nor config.json; give a diffusers "
      "pipeline or transformer folder"
    )
  return path


def _from_cache(name: Path) -> Path:
  """Where the Hugging Face cache has a model.

  Raises:
    ValueError: if it has none of that name.
  """
  wanted = f"{name} is not a folder"
  if not HUB_NAME.fullmatch(name.as_posix()):
    raise ValueError(f"{wanted}; give a diffusers folder")
  try:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
  except ImportError:
    raise ValueError(
      f"{wanted}; give a diffusers folder, or, to find a downloaded model of "
      "this name, pip install 'dollar_jax[torch]'"
    ) from None
  try:
    found = huggingface_hub.snapshot_download(
      name.as_posix(), local_files_only=True
    )
  except LocalEntryNotFoundError:
    raise ValueError(
      f"{wanted}, and the Hugging Face cache has no model of this name; give a "
      f"diffusers folder, or fetch it first: hf download {name}"
    ) from None
  return Path(found)


def check_target(path: Path) -> None:
  """Checks that a model may be written to a path: it is free, or holds one.

  Raises:
    ValueError: if something else is there.
  """
  if path.exists() and not path.is_dir():
    raise ValueError(f"{path} is a file; give a folder for the model")
  used = path.is_dir() and any(path.iterdir())
  if used and not (path / "model_index.json").is_file():
    raise ValueError(
      f"{path} holds other files than a model; give a new or empty folder"
    )
