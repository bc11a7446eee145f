"""What a command settles before JAX is imported."""

import os
import pathlib
import pkgutil
import resource
import subprocess
import sys

import numpy as np
import pytest

from dollar_jax import programs, startup

glibc = pytest.mark.skipif(
  sys.platform != "linux", reason="only Linux has glibc's allocator"
)


@pytest.fixture
def told(monkeypatch):
  """What the allocator is told, in place of telling it."""
  calls = {}

  class Library:
    @staticmethod
    def mallopt(number, value):
      calls[number] = value
      return 1

  monkeypatch.setattr(startup.ctypes, "CDLL", lambda name: Library)
  for name in ("GLIBC_TUNABLES", *startup._KEEP_FREED):
    monkeypatch.delenv(name, raising=False)
  return calls


@glibc
def test_memory_that_was_freed_is_taken_again_without_the_kernel():
  assert startup.keep_freed_memory()
  size = 64 * 2**20
  np.ones(size, np.uint8)  # from here on the process has that much
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(4):
    np.ones(size, np.uint8)
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
  assert faults < size // resource.getpagesize()  # of four times as many


@glibc
def test_the_allocator_is_told_what_the_variables_would(told):
  assert startup.keep_freed_memory()
  assert told == {-1: 2**31 - 1, -3: 2**31 - 1, -8: 1}


@glibc
@pytest.mark.parametrize(
  "name, value, number",
  [
    ("MALLOC_ARENA_MAX", "4", -8),
    ("MALLOC_TRIM_THRESHOLD_", "1000", -1),
    ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1000", -3),
  ],
)
def test_what_a_user_has_told_the_allocator_stays(
  told, monkeypatch, name, value, number
):
  monkeypatch.setenv(name, value)
  assert startup.keep_freed_memory()
  assert len(told) == 2
  assert number not in told


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  folder = startup.keep_compiled_programs()
  assert folder.is_dir()
  assert folder.parent == tmp_path / "dollar_jax" / "compiled"
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)


def test_a_users_own_cache_of_programs_stays(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
  assert startup.keep_compiled_programs() is None
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
  assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  assert startup.keep_compiled_programs() is None
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_command_line_is_read_without_jax():
  names = [module.name for module in pkgutil.iter_modules(programs.__path__)]
  edges = [name for name in names if not name.startswith("_")]
  assert "sample" in edges
  imports = "".join(f"import dollar_jax.programs.{name}\n" for name in edges)
  code = f"import sys\nimport dollar_jax.cli\n{imports}"
  code += "import dollar_jax.train.config\n"
  code += "print(*{'jax', 'numpy', 'matplotlib'} & set(sys.modules))"
  found = subprocess.run(
    [sys.executable, "-c", code],
    check=True,
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert found.stdout.strip() == ""
