"""What a program ran on, and how fast: for those who read its results."""

import platform
import resource
import statistics
import sys
import time
from importlib import metadata
from typing import Any

import jax

MACHINE = "machine.json"
"""What a run, or a folder of clips, keeps it in."""


def describe() -> dict[str, Any]:
  """Versions, devices and peak memory, as JSON can hold them.

  The memory is the first local device's where it counts it, else this
  process'.
  """
  device = jax.local_devices()[0]
  used = (device.memory_stats() or {}).get("peak_bytes_in_use")
  unit = 1 if sys.platform == "darwin" else 1024
  process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return {
    "python": platform.python_version(),
    "dollar_jax": metadata.version("dollar_jax"),
    "jax": jax.__version__,
    "devices": jax.device_count(),
    "device": f"{device.device_kind} ({device.platform})",
    "processes": jax.process_count(),
    "peak_memory_bytes": process if used is None else used,
    "memory_of": "process" if used is None else "device",
  }


class Pace:
  """Seconds that something takes which is done again and again.

  The first time is left out, since it compiles.
  """

  def __init__(self):
    """Nothing has been done yet."""
    self._began = 0.0
    self._seconds: list[float] = []

  def start(self) -> None:
    """Says that it begins."""
    self._began = time.perf_counter()

  def stop(self) -> None:
    """Says that it has been done."""
    self.add(time.perf_counter() - self._began)

  def add(self, seconds: float) -> None:
    """Says that it has been done, in so many seconds."""
    self._seconds.append(seconds)

  @property
  def median(self) -> float | None:
    """Seconds of a usual one; None before the second."""
    later = self._seconds[1:]
    return statistics.median(later) if later else None
