"""When a run saves: after so many updates, and after so much time.

Saving moves nothing, so that a run's numbers do not depend on it. Orbax has a
policy of this kind, too. It reads the calendar, which may be set back, and the
processes meet at every step for it.
"""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from dollar_jax.train.config import CheckpointConfig

_FAR = 10_000
"""Updates after which the first process is asked at the latest."""


class SaveTimes:
  """Tells after which steps to save, the same in every process.

  Time is that of the first process' monotonic clock. Several processes ask it
  seldom, since the devices wait meanwhile: it answers for how many steps it
  need not be asked again, half of those that the time left allows.
  """

  def __init__(self, config: CheckpointConfig, start: int):
    """Starts the clock.

    Args:
      config: how often.
      start: the step a run begins or goes on from.
    """
    self._every, self._seconds = config.every, 60 * config.minutes
    self.saved(start)

  def saved(self, step: int) -> None:
    """Starts the clock anew: the state after `step` is being saved."""
    self._since = self._asked_at = time.monotonic()
    self._asked, self._ask = step, step + 1

  def due(self, step: int) -> bool:
    """Whether to save after `step`; to be asked after every one."""
    if step % self._every == 0:
      return True
    if not self._seconds or step < self._ask:
      return False
    wait = self._wait(step)
    if jax.process_count() > 1:
      wait = int(multihost_utils.broadcast_one_to_all(np.int32(wait)))
    self._ask = step + wait
    return wait == 0

  def _wait(self, step: int) -> int:
    """For how many steps no save can be due; 0 if one is."""
    now = time.monotonic()
    left = self._since + self._seconds - now
    pace = (now - self._asked_at) / (step - self._asked)
    self._asked, self._asked_at = step, now
    if left <= 0:
      return 0
    if jax.process_count() == 1:
      return 1
    return max(1, int(min(left / max(pace, 1e-9) / 2, _FAR)))
