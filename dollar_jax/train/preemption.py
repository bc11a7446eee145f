"""A run that is asked to stop saves first: SIGTERM, before a machine is taken.

A cluster sends SIGTERM to a job that must make room or whose time ends. Of
several processes all stop after the same step, whichever was told.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
  """Whether this run was asked to stop.

  Attributes:
    asked: whether this process, alone in its run, got SIGTERM.
  """

  def __init__(self):
    self.asked = False

  def due(self, step: int) -> bool:
    """Whether to save and stop after `step`, the same in every process."""
    if jax.process_count() > 1:  # JAX itself listens to SIGTERM
      return multihost_utils.reached_preemption_sync_point(step)
    return self.asked


@contextlib.contextmanager
def on_sigterm() -> Iterator[Stop]:
  """Takes note of SIGTERM instead of ending at once."""
  stop = Stop()
  alone = jax.process_count() == 1
  if not alone or threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def note(number: int, frame: FrameType | None) -> None:
    del number, frame
    stop.asked = True

  before = signal.signal(signal.SIGTERM, note)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, before)
