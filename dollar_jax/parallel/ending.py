"""How a process ends when its run of several has failed.

JAX's runtime aborts a process that lost the others, by a trace in C++; here
that gets a last line. An ordinary exit first waits for the others, who may
never come; here it does not.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

_libc = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)

# The handler in place, kept from the garbage collector, and the one before it.
_handler: Any = None
_before: int | None = None


def on_abort(sentence: str) -> None:
  """Makes an abort of this process end with a line of ours, exit code 75.

  Python's own handlers would come too late: they run in the main thread, once
  the one that aborts the process has returned, which it never does.

  Args:
    sentence: what to say; a later call replaces it.
  """
  global _handler, _before
  line = f"{sentence}\n".encode()

  def speak(number: int) -> None:
    del number
    with contextlib.suppress(OSError):
      os.write(2, line)
    os._exit(os.EX_TEMPFAIL)

  handler = _Handler(speak)
  before = _set_handler(ctypes.cast(handler, ctypes.c_void_p).value)
  if _handler is None:
    _before = before
  _handler = handler


def plain_abort() -> None:
  """Undoes `on_abort`."""
  global _handler
  if _handler is not None:
    _set_handler(_before)
    _handler = None


def leave_at_once(code: int) -> None:
  """Makes the exit that follows wait for no other process.

  Args:
    code: the exit code, because this exit does not learn it.
  """

  def leave() -> None:
    with contextlib.suppress(OSError):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(code)

  # Called first, for the last comes first: before JAX's own, which waits.
  atexit.register(leave)


def _set_handler(pointer: int | None) -> int | None:
  return _libc.signal(signal.SIGABRT, pointer)
