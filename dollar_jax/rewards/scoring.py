"""Scores clips with rewards that may be slow, remote, stochastic or wrong.

What a reward does is its own affair: it may raise, hang, or return nonsense.
It costs the labels of those clips, which are counted, and never the run.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dollar_jax.rewards.base import Reward


@dataclasses.dataclass(frozen=True)
class Patience:
  """How long and how often a reward is asked.

  Attributes:
    timeout: seconds of one call; 0 waits for ever.
    retries: further calls after one that gave no value at all.
  """

  timeout: float = 0.0
  retries: int = 0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0 <= value < float("inf"):
        raise ValueError(
          f"{field.name} of a reward is {value}; it must be 0 or more"
        )


ONCE = Patience()
"""One call, however long it takes."""


@dataclasses.dataclass(frozen=True)
class Failures:
  """What went wrong in scoring one batch.

  Attributes:
    count: samples without a value.
    total: samples asked for, B.
    reason: why, or None if nothing failed.
    retries: calls that were made again.
  """

  count: int
  total: int
  reason: str | None = None
  retries: int = 0


def score(
  reward: Reward,
  frames: np.ndarray,
  prompts: list[str],
  patience: Patience = ONCE,
) -> tuple[np.ndarray, Failures]:
  """Scores clips; a reward that fails costs its labels, never the run.

  Args:
    reward: what to score with.
    frames: uint8 [B, F, H, W, 3].
    prompts: B strings.
    patience: when to give a call up, and whether to make it again.

  Returns:
    float32 [B], NaN where there is no value (all of them if the reward raised,
    took too long or returned another shape, those that were not finite
    otherwise), and what failed.

  Raises:
    ValueError: if frames or prompts are wrong; that is the caller's mistake.
  """
  check_frames(frames)
  total = len(frames)
  if len(prompts) != total:
    raise ValueError(
      f"{total} clips came with {len(prompts)} prompts; give one for each"
    )
  retries = 0
  values, reason = _try(reward, frames, prompts, patience.timeout)
  while np.isnan(values).all() and retries < patience.retries:
    retries += 1
    values, reason = _try(reward, frames, prompts, patience.timeout)
  return values, Failures(int(np.isnan(values).sum()), total, reason, retries)


def _try(
  reward: Reward, frames: np.ndarray, prompts: list[str], timeout: float
) -> tuple[np.ndarray, str | None]:
  """Values [B], NaN where there is none, and why."""
  nothing = np.full(len(frames), np.nan, np.float32)
  try:
    raw = _within(timeout, lambda: reward(frames, list(prompts)))
    with np.errstate(over="ignore"):  # too large for float32 is not finite
      values = np.asarray(raw, np.float32)
  except Exception as error:  # a stranger's code may raise anything
    return nothing, f"{type(error).__name__}: {error}"
  if values.shape != nothing.shape:
    return nothing, (
      f"returned shape {values.shape} instead of {nothing.shape}"
    )
  finite = np.isfinite(values)
  if finite.all():
    return values, None
  missing = int((~finite).sum())
  return np.where(finite, values, nothing), (
    f"returned {missing} of {len(values)} values not finite"
  )


def _within(timeout: float, call: Callable[[], Any]) -> Any:
  """What `call` returns or raises, if it does so within `timeout` seconds.

  A call that hangs goes on in its thread: Python cannot end it.
  """
  if not timeout:
    return call()
  outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = (
    queue.SimpleQueue()
  )

  def work() -> None:
    try:
      outcome.put((call(), None))
    except BaseException as error:  # it belongs to the caller
      outcome.put((None, error))

  threading.Thread(target=work, name="reward", daemon=True).start()
  try:
    value, error = outcome.get(timeout=timeout)
  except queue.Empty:
    raise TimeoutError(f"no value within {timeout:g} s") from None
  if error is not None:
    raise error
  return value


def check_frames(frames: np.ndarray) -> None:
  """Raises ValueError unless `frames` is uint8 [B, F, H, W, 3], B, F >= 1."""
  shape, dtype = np.shape(frames), getattr(frames, "dtype", None)
  good = len(shape) == 5 and shape[-1] == 3 and min(shape) > 0
  if not good or dtype != np.uint8:
    raise ValueError(
      f"frames are {dtype} {list(shape)}; rewards take uint8 [B, F, H, W, 3], "
      "none of them zero"
    )
