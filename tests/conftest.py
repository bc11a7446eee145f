"""Set-up that every test shares.

Tests run on the CPU unless `JAX_PLATFORMS` says otherwise: their tolerances are
float32's, and a GPU multiplies in TF32. There is one CPU device, as a laptop
has; a test of a mesh starts a process of its own with
`jax.config.update("jax_num_cpu_devices", 8)` before jax's first computation,
because splitting the CPU in this process would slow every other test down.
"""

import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# jax reads these when it is imported, so they are set here and not in a
# fixture. Most of the suite's time is compilation; a second run loads it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402 (after what it reads)

# What the parity tests compare with. requirements/test.txt installs it for
# Python 3.11 only, where its absence must not pass for success.
PARITY_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


LONG_GROUPS = ("tests/programs/test_demo.py", "tests/train")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Says which tests `pytest -n` keeps in one process: those of a file.

  All of tests/train is one group, for it shares its runs. The groups that
  take minutes start first.
  """

  def group(item: pytest.Item) -> str:
    file = item.path.relative_to(ROOT).as_posix()
    return next((g for g in LONG_GROUPS if file.startswith(g)), file)

  def rank(item: pytest.Item) -> int:
    name = group(item)
    return LONG_GROUPS.index(name) if name in LONG_GROUPS else len(LONG_GROUPS)

  for item in items:
    item.add_marker(pytest.mark.xdist_group(group(item)))
  items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
  """Skips a marked test that this environment cannot run."""
  if item.get_closest_marker("torch"):
    missing = [name for name in PARITY_PACKAGES if not _is_installed(name)]
    if missing:
      reason = f"{', '.join(missing)} not installed"
      if sys.version_info < (3, 12):
        pytest.fail(f"{reason}: run launch/test.sh", pytrace=False)
      pytest.skip(f"{reason}: Python 3.11 runs the parity tests")

  if item.get_closest_marker("tpu_aot") and not _is_installed("libtpu"):
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
      pytest.fail("libtpu not installed: run launch/test.sh", pytrace=False)
    pytest.skip("there is no libtpu for this machine")


@pytest.fixture
def quick_compiles() -> Iterator[None]:
  """For networks that run once: compiling for speed would take most time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def clips_folder() -> pathlib.Path:
  """Folder of real captioned clips that lies beside the checkout."""
  folder = ROOT.parent / "shared" / "data" / "clips"
  if not (folder / "metadata.jsonl").is_file():
    pytest.skip(f"no real clips in {folder}")
  return folder


def _is_installed(name: str) -> bool:
  return importlib.util.find_spec(name) is not None
