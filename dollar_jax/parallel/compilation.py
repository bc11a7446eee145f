"""How the programs of a run are compiled: with which options, and when."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

_LEVEL = "xla_backend_optimization_level"


def compiler_options(platform: str) -> dict[str, Any] | None:
  """Returns XLA's options for a training step or a sampler.

  On the CPU LLVM's first level of optimisation compiles in less time, and
  what comes of it runs as fast; the accelerators keep theirs.
  A level in XLA_FLAGS stays.

  Args:
    platform: "cpu", "gpu" or "tpu".
  """
  if platform != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
    return None
  return {_LEVEL: 1}


def compile_together(calls: Iterable[tuple[Any, tuple]]) -> None:
  """Compiles jitted functions side by side; a later call finds what is there.

  Python traces one after another, while XLA compiles those before it. Only
  where the whole run is this process: elsewhere compilers of several hosts may
  wait for each other, and must all do the same at the same time.

  Args:
    calls: (jitted function, its arguments or their shapes). A shape that is to
      be found again says where the array will lie, or nothing if that is on
      no certain device.
  """
  if jax.process_count() > 1:
    return
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    begun = [
      pool.submit(function.trace(*args).lower().compile)
      for function, args in calls
    ]
    for one in begun:
      one.result()
