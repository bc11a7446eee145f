"""Files that appear whole or not at all, and texts that can be read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")
"""What arrays may be stored as."""


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, ending: str = "") -> Iterator[Path]:
  """Gives the name of a file that takes the place of `path` if all goes well.

  Args:
    path: the file; its folder is there.
    ending: of the name that is given, for whoever looks at it.

  Raises:
    OSError: if it cannot be written; what is at `path` stays as it was.
  """
  path = Path(path)
  part = path.with_name(f".{path.name}.part{ending}")
  try:
    yield part
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8, whole or not at all; makes the folder it is in."""
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  with written_whole(path) as part:
    part.write_text(text, encoding="utf-8")


def read_text(path: str | os.PathLike) -> str:
  """Reads UTF-8, with or without a byte order mark.

  Raises:
    ValueError: if there is no such file, or it is not text.
  """
  try:
    return Path(path).read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "it is not text"
    raise ValueError(f"{path} cannot be read ({reason})") from None


def user_cache(name: str) -> Path:
  """The user's folder for what can be made again, such as "text"."""
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(root) / "dollar_jax" / name
