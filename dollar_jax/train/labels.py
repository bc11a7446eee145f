"""Labels for the latent reward model: decode, score, compare.

`Labeller` turns a student's latents into true rewards, in line or on a thread
of its own.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from dollar_jax.rewards.base import Failures, Reward, score

DecodeFn = Callable[[Any], Any]
"""latents [B, T, H, W, C] → frames uint8 [B, F, H, W, 3]."""


@dataclasses.dataclass(frozen=True)
class LabelledBatch:
  """Latents with their true rewards, on the host.

  Attributes:
    latents: float32 [B, T, H, W, C].
    text: float32 [B, S, D] or None.
    text_mask: bool [B, S] or None.
    values: float32 [B], NaN where not valid.
    valid: bool [B], False where the reward gave no value.
    step_submitted: int64 [B], the training step the latents were drawn at.
  """

  latents: np.ndarray
  text: np.ndarray | None
  text_mask: np.ndarray | None
  values: np.ndarray
  valid: np.ndarray
  step_submitted: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelCounts:
  """What a labeller has done so far.

  Attributes:
    calls: calls of the reward.
    failed_calls: those that gave no label at all.
    failed_in_a_row: those since the last call that gave one.
    failed_labels: samples without a label, over all calls.
  """

  calls: int = 0
  failed_calls: int = 0
  failed_in_a_row: int = 0
  failed_labels: int = 0

  def after(self, failures: Failures) -> "LabelCounts":
    """The counts one call later."""
    failed = failures.count == failures.total
    return LabelCounts(
      calls=self.calls + 1,
      failed_calls=self.failed_calls + failed,
      failed_in_a_row=self.failed_in_a_row + 1 if failed else 0,
      failed_labels=self.failed_labels + failures.count,
    )


@dataclasses.dataclass(frozen=True)
class _Job:
  step: int
  x0: Any
  text: Any
  text_mask: Any
  prompts: list[str]


class Labeller:
  """Decodes and scores latents; keeps the step's critical path free of it.

  In line (the default), `submit` does the work at once and a run is
  deterministic. In the background one thread does it, in order; `submit`
  waits only while `max_queue` batches already do, which bounds both memory
  and how old a label can get.

  A reward that fails costs its labels. After `max_failures` calls in a row
  without a label, and after any error that is not the reward's (a decoder
  that breaks), the next call of `submit`, `collect` or `close` raises.

  Use as a context manager, or call `close`.

  Attributes:
    counts: `LabelCounts`; assign it to go on counting after a resume.
  """

  def __init__(
    self,
    decode_fn: DecodeFn,
    reward: Reward,
    *,
    max_queue: int = 2,
    max_failures: int = 10,
    background: bool = False,
  ):
    """Makes a labeller; the thread starts here.

    Args:
      decode_fn: latents → frames; called on the thread if in the background.
      reward: what to score with.
      max_queue: batches that may wait; each holds its latents.
      max_failures: calls without a label in a row after which to stop.
      background: whether to work on a thread.

    Raises:
      ValueError: if a number is below 1.
    """
    limits = {"max_queue": max_queue, "max_failures": max_failures}
    for name, limit in limits.items():
      if limit < 1:
        raise ValueError(f"{name} of labelling is {limit}; it must be >= 1")
    self.counts = LabelCounts()
    self._decode_fn = decode_fn
    self._reward = reward
    self._max_queue = max_queue
    self._max_failures = max_failures
    self._jobs: collections.deque[_Job] = collections.deque()
    self._done: list[LabelledBatch] = []
    self._busy = False
    self._closed = False
    self._error: BaseException | None = None
    self._told = False
    self._changed = threading.Condition()
    self._thread = None
    if background:
      # daemon: a reward that hangs must not keep a dying program alive
      self._thread = threading.Thread(
        target=self._work, name="labeller", daemon=True
      )
      self._thread.start()

  @property
  def pending(self) -> int:
    """Batches submitted and not labelled yet."""
    with self._changed:
      return len(self._jobs) + self._busy

  def submit(
    self,
    step: int,
    x0: Any,
    text: Any,
    text_mask: Any,
    prompts: Sequence[str],
  ) -> None:
    """Hands over one batch.

    Args:
      step: the training step, kept with the labels.
      x0: float32 [B, T, H, W, C], on the device or not; must not be donated
        to a later step. NumPy arrays are copied.
      text: float32 [B, S, D] or None; kept with the labels.
      text_mask: bool [B, S] or None; kept with the labels.
      prompts: B strings.

    Raises:
      ValueError: if the reward failed too often in a row.
      RuntimeError: after `close`.
      Exception: whatever else stopped the labelling.
    """
    if self._closed:
      raise RuntimeError("the labeller is closed; make another")
    job = _Job(step, *map(_hold, (x0, text, text_mask)), list(prompts))
    if self._thread is None:
      self._done.append(self._label(job))
      return
    with self._changed:
      self._changed.wait_for(
        lambda: self._error is not None or len(self._jobs) < self._max_queue
      )
      self._raise_error()
      self._jobs.append(job)
      self._changed.notify_all()

  def collect(self, block: bool = False) -> list[LabelledBatch]:
    """Takes what is labelled, in the order it was submitted, each once.

    Args:
      block: whether to wait until everything submitted is labelled.

    Raises:
      ValueError, Exception: as `submit`.
    """
    with self._changed:
      if block:
        self._changed.wait_for(
          lambda: self._error is not None or not (self._jobs or self._busy)
        )
      self._raise_error()
      done, self._done = self._done, []
      return done

  def close(self) -> None:
    """Ends the thread after the batch in hand; what waits is dropped.

    Raises an error of the thread that nobody was told of. May be called twice.
    """
    with self._changed:
      self._closed = True
      self._jobs.clear()
      self._changed.notify_all()
    if self._thread is not None:
      self._thread.join()
    if self._error is not None and not self._told:
      self._told = True
      raise self._error

  def __enter__(self) -> "Labeller":
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if error is not None:
      self._told = True  # one error at a time
    self.close()

  def _raise_error(self) -> None:
    if self._error is not None:
      self._told = True
      raise self._error

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._jobs or self._closed)
        if self._closed:
          return
        job = self._jobs.popleft()
        self._busy = True
        self._changed.notify_all()
      labelled = error = None
      try:
        labelled = self._label(job)
      except BaseException as caught:  # it belongs to the main thread
        error = caught
      with self._changed:
        self._busy = False
        self._error = error
        if labelled is not None:
          self._done.append(labelled)
        self._changed.notify_all()
      if error is not None:
        return

  def _label(self, job: _Job) -> LabelledBatch:
    frames = np.asarray(jax.device_get(self._decode_fn(job.x0)))
    values, failures = score(self._reward, frames, job.prompts)
    self.counts = self.counts.after(failures)
    if self.counts.failed_in_a_row >= self._max_failures:
      raise ValueError(
        f"reward {self._reward.name!r} failed in "
        f"{self.counts.failed_in_a_row} calls in a row, the last with "
        f"'{failures.reason}'; mend it, choose another, or allow more "
        "failures"
      )
    latents, text, text_mask = jax.device_get((job.x0, job.text, job.text_mask))
    return LabelledBatch(
      latents=np.asarray(latents, np.float32),
      text=text,
      text_mask=text_mask,
      values=values,
      valid=np.isfinite(values),
      step_submitted=np.full(len(values), job.step, np.int64),
    )


def spearman(predicted: Any, true: Any) -> float:
  """Spearman's rank correlation over the pairs that are both finite.

  Args:
    predicted: [N].
    true: [N].

  Returns:
    In [-1, 1]; NaN if fewer than three pairs remain or either is constant.
  """
  pairs = np.stack([np.asarray(predicted), np.asarray(true)]).astype(float)
  pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
  if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
    return float("nan")
  return float(stats.spearmanr(*pairs).statistic)


def _hold(array: Any) -> Any:
  """The array as it is now: NumPy's may be written to after `submit`."""
  return np.array(array) if isinstance(array, np.ndarray) else array
