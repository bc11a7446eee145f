"""Set-up that every test shares.

Tests run on the CPU unless `JAX_PLATFORMS` says otherwise: their tolerances are
float32's, and a GPU multiplies in TF32. There is one CPU device, as a laptop
has; a test of a mesh starts a process of its own with
`jax.config.update("jax_num_cpu_devices", 8)` before jax's first computation,
because splitting the CPU in this process would slow every other test down.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.durations import Durations, read_budgets

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Most of the suite's time is compilation, of programs that run once or a few
# times: LLVM is not to optimise them, nor to get them in 32 parts. jaxlib 0.10
# can also do without the emitter that takes most of what is left; later ones
# end at a flag that they do not know. The level is what `optimised` gets, and
# keeps training steps and samplers from asking for one of their own.
FLAGS = [
  "--xla_backend_optimization_level=1",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# jax reads these when it is imported, so they are set here and not in a
# fixture. Processes that tests start inherit them, and so round as this one
# does. What was compiled is kept, however small: they and a second run load it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# What the parity tests compare with. requirements/test.txt installs it for
# Python 3.11 only, where its absence must not pass for success.
PARITY_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


LONG_FILES = (
  "tests/programs/test_demo.py",
  "tests/train/test_processes.py",
  "tests/train/test_mesh.py",
  "tests/train/test_bad_input.py",
  "tests/test_benchmarks.py",
  "tests/train/test_resume.py",
  "tests/programs/test_plan.py",
  "tests/interop/test_pipelines.py",
  "tests/train",
)
"""What takes longest begins first, so that no process is left alone with it."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Says which tests `pytest -n` keeps in one process: those of a file."""

  def rank(item: pytest.Item) -> int:
    ranks = enumerate(LONG_FILES)
    found = (i for i, name in ranks if file_of(item).startswith(name))
    return next(found, len(LONG_FILES))

  for item in items:
    item.add_marker(pytest.mark.xdist_group(file_of(item)))
  items.sort(key=rank)


def file_of(item: pytest.Item) -> str:
  """Returns the file of a test, from the checkout's root."""
  return item.path.relative_to(ROOT).as_posix()


def pytest_configure(config: pytest.Config) -> None:
  """Adds up the time of every file, in the process that hears of all."""
  if not hasattr(config, "workerinput"):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    config.pluginmanager.register(Durations(read_budgets(text)))


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


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
  """For what computes for longer than it compiles."""
  import jax

  name = "jax_disable_most_optimizations"
  jax.config.update(name, False)
  yield
  jax.config.update(name, os.environ[name.upper()] == "true")


@pytest.fixture(scope="session")
def once(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]:
  """Makes a folder once, whichever process of `pytest -n` asks for it first.

  `once(name, make)` returns the folder `name`, which `make(folder)` has filled
  here or in another process; this one waits for that.
  """
  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent  # of all processes
  root /= "once"
  root.mkdir(exist_ok=True)

  def get(name, make):
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a test that was ended
        make(folder)
        done.touch()
    return folder

  return get


@pytest.fixture(scope="session")
def clips_folder() -> pathlib.Path:
  """Folder of real captioned clips that lies beside the checkout."""
  folder = ROOT.parent / "shared" / "data" / "clips"
  if not (folder / "metadata.jsonl").is_file():
    pytest.skip(f"no real clips in {folder}")
  return folder


def _is_installed(name: str) -> bool:
  return importlib.util.find_spec(name) is not None
