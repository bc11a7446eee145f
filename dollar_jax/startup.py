"""What the process of a command settles before JAX is imported.

Whatever the environment says already stays as it is.
"""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

from dollar_jax.files import user_cache

_LARGEST = 2**31 - 1
_KEEP_FREED = {
  "MALLOC_TRIM_THRESHOLD_": (-1, _LARGEST),
  "MALLOC_MMAP_THRESHOLD_": (-3, _LARGEST),
  "MALLOC_ARENA_MAX": (-8, 1),
}
"""Settings of glibc's allocator: by the variable that sets one, its number in
malloc.h, as `mallopt` takes it, and our value."""

_SECONDS = "0.5"
"""A program that compiles for longer is kept."""


def prepare() -> None:
  """Sets the process up for JAX: memory, and compiled programs that are kept.

  To be called before JAX is imported; later it changes little or nothing.
  """
  keep_freed_memory()
  keep_compiled_programs()


def keep_freed_memory() -> bool:
  """Has glibc keep what is freed, for whoever asks next.

  XLA's CPU backend takes a program's temporaries anew at every call. By itself
  glibc gives blocks of their size back to the kernel, which zeroes them again.
  A process that has begun is told by `mallopt` what the variables
  MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and MALLOC_ARENA_MAX would have
  told it; those that are set stay.

  Returns:
    Whether the allocator is glibc's, and took it.
  """
  if sys.platform != "linux":
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:  # musl has none
    return False
  tunables = os.environ.get("GLIBC_TUNABLES", "")
  taken = True
  for variable, (number, value) in _KEEP_FREED.items():
    tunable = variable.lower().strip("_").replace("malloc_", "glibc.malloc.", 1)
    if variable not in os.environ and tunable not in tunables:
      taken &= bool(mallopt(number, value))
  return taken


def keep_compiled_programs() -> Path | None:
  """Has JAX keep what it compiles in the user's cache, for the next process.

  Programs for the CPU hold its instructions; the folder is named after them,
  so that machines which share a home do not share those.

  Returns:
    The folder; None where JAX_COMPILATION_CACHE_DIR names one, or none, and
    where the user's cache cannot be written.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return None
  try:
    folder = user_cache("compiled") / _processor()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # no home, or none that can be written
    return None
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _SECONDS)
  return folder


def _processor() -> str:
  """A name of this kind of processor."""
  kind = platform.machine()
  info = Path("/proc/cpuinfo")
  if info.is_file():
    first = info.read_text(errors="replace").partition("\n\n")[0]
    same = ("model name", "flags", "Features", "CPU part")
    lines = [line for line in first.splitlines() if line.startswith(same)]
    kind += f"-{hashlib.sha256(''.join(lines).encode()).hexdigest()[:8]}"
  return kind
