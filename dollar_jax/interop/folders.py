"""Folders of a model: written whole or not at all, read with clear errors."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
  """Writes a JSON object; makes the folder it is in."""
  file.parent.mkdir(exist_ok=True)
  file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
