"""Programs in processes of their own that need not import everything anew.

Imports are most of a short program's time. A server imports once and forks for
each program, before anything of jax has begun to run; what it forks is a
process like another, with devices of its own.
"""

import atexit
import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
from multiprocessing.connection import Connection

MODULES = ("dollar_jax.programs.train", "dollar_jax.cli")
"""What the server imports."""


@functools.cache
def _context():
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(MODULES))
  return context


class Program:
  """`python -c CODE ARGS`, in what `subprocess.Popen` offers of a process."""

  def __init__(self, folder: pathlib.Path, code: str, *args: str):
    """Starts it below our priority.

    Args:
      folder: a folder of the program's own.
      code: what it does.
      *args: its `sys.argv[1:]`.
    """
    file = folder / "program.py"
    file.write_text(code, encoding="utf-8")
    self._errors = folder / "stderr.txt"
    self._errors.touch()
    reader, writer = _context().Pipe(duplex=False)
    self._process = _context().Process(
      target=_run, args=(writer, file, list(args))
    )
    self._process.start()
    writer.close()
    self._reader = reader  # closes what stdout reads once it is gone
    self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    self.pid = self._process.pid

  @property
  def stderr(self):
    """What it has written to stderr so far."""
    return open(self._errors, encoding="utf-8")

  @property
  def returncode(self) -> int | None:
    """Exit code, -N after signal N, None while it runs."""
    return self._process.exitcode

  poll = returncode.fget

  def kill(self) -> None:
    self._process.kill()

  def terminate(self) -> None:
    self._process.terminate()

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    """Waits for its end; returns what it wrote to stdout and stderr."""
    self._process.join(timeout)
    if self.returncode is None:
      raise subprocess.TimeoutExpired("forked program", timeout)
    if not self.stdout.closed:
      with self.stdout:
        self._output = self.stdout.read()
    with self.stderr as errors:
      return self._output, errors.read()


def _run(stdout: Connection, file: pathlib.Path, args: list[str]) -> None:
  """Becomes the program."""
  os.nice(5)
  os.dup2(stdout.fileno(), 1)
  errors = os.open(file.with_name("stderr.txt"), os.O_WRONLY | os.O_APPEND)
  os.dup2(errors, 2)
  sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", 1) for n in (1, 2))
  sys.argv = ["-c", *args]
  try:
    runpy.run_path(str(file), run_name="__main__")
  finally:
    atexit._run_exitfuncs()  # multiprocessing leaves without them
