"""What Orbax raises and prints, made fit to read."""

import functools
import logging as std_logging
import os
import re
import sys
import warnings
from typing import Any


def first_line(error: BaseException) -> str:
  """What the operating system said, or else the first line of an error."""
  code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
  if code:
    return os.strerror(int(code[1]))
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]}…"


@functools.cache
def quiet_orbax() -> None:
  """Drops what Orbax prints: what matters of it is raised as well.

  One torn file, or a full disk, makes hundreds of lines: its log, and the
  tasks of other arrays, which complain that nobody waits for them any more,
  some of them only when the program ends.
  """
  unraisablehook = sys.unraisablehook

  def on_unraisable(args: Any) -> None:
    closed = str(args.exc_value) == "Event loop is closed"
    code = getattr(args.object, "cr_code", None)
    if not closed and "/orbax/" not in getattr(code, "co_filename", ""):
      unraisablehook(args)

  sys.unraisablehook = on_unraisable
  warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host")
  std_logging.getLogger("absl").addFilter(_not_of_orbax)
  std_logging.getLogger("asyncio").addFilter(_not_of_orbax)


def _not_of_orbax(record: std_logging.LogRecord) -> bool:
  if record.name == "asyncio":
    return not re.search("/orbax/|OCDBT", record.getMessage())
  return "/orbax/" not in record.pathname
