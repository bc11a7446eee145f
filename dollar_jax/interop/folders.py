"""Folders of a model: written whole or not at all, read with clear errors."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that can run any code when they are read."""


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
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_name(f".{file.name}.part")
  part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  part.replace(file)


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
  """Checks that a path is a pipeline's or transformer's folder.

  Raises:
    ValueError: if it is not.
  """
  path = Path(path)
  if path.suffix in PICKLES and path.is_file():
    raise ValueError(
      f"{path} is a pickle, which can run any code and is not read; give a "
      "diffusers folder with safetensors weights"
    )
  if not path.is_dir():
    raise ValueError(f"{path} is not a folder; give a diffusers folder")
  pipeline = (path / "transformer").is_dir()
  if not pipeline and not (path / "config.json").is_file():
    raise ValueError(
      f"{path} has neither transformer/ nor config.json; give a diffusers "
      "pipeline or transformer folder"
    )
  return path


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
