"""Labels for the latent reward model: decode, score, compare.

`Labeller` turns a student's latents into true rewards, in line or on threads
of its own.
"""

import collections
import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from dollar_jax.rewards.mixture import Mixture
from dollar_jax.rewards.scoring import ONCE, Failures, Patience

DecodeFn = Callable[[Any], Any]
"""latents [B, T, H, W, C] → frames uint8 [B, F, H, W, 3]."""


@dataclasses.dataclass(frozen=True)
class LabelledBatch:
  """Latents with their true rewards, on the host.

  Attributes:
    latents: float32 [B, T, H, W, C].
    text: float32 [B, S, D] or None.
    text_mask: bool [B, S] or None.
    values: float32 [B, M], a column a reward, NaN where it gave no value.
    valid: bool [B], False where a value is missing.
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
    calls: batches scored.
    failed_calls: those that gave no label at all.
    failed_in_a_row: those since the last that gave one.
    failed_labels: samples without a label.
    retries: calls of a reward that were made again.
  """

  calls: int = 0
  failed_calls: int = 0
  failed_in_a_row: int = 0
  failed_labels: int = 0
  retries: int = 0

  def after(self, failures: Failures) -> "LabelCounts":
    """The counts one batch later."""
    failed = failures.count == failures.total
    return LabelCounts(
      calls=self.calls + 1,
      failed_calls=self.failed_calls + failed,
      failed_in_a_row=self.failed_in_a_row + 1 if failed else 0,
      failed_labels=self.failed_labels + failures.count,
      retries=self.retries + failures.retries,
    )


@dataclasses.dataclass(eq=False)
class _Job:
  """One batch, on its way from latents to labels."""

  step: int
  x0: Any
  text: Any
  text_mask: Any
  prompts: list[str]
  taken: bool = False
  labelled: LabelledBatch | None = None


class Labeller:
  """Decodes and scores latents; keeps the step's critical path free of it.

  In line (the default), `submit` does the work at once and a run is
  deterministic. In the background threads do it; `submit` waits only while
  `max_queue` batches are untouched, which bounds memory.

  A reward that fails costs its labels. After `max_failures` batches in a row
  without a label, and after any error that is not the reward's (a decoder
  that breaks), the next call of `submit`, `collect` or `close` raises.

  Use as a context manager, or call `close`.

  Attributes:
    counts: `LabelCounts`; assign it to go on counting after a resume.
  """

  def __init__(
    self,
    decode_fn: DecodeFn,
    rewards: Mixture,
    *,
    workers: int = 0,
    max_queue: int = 2,
    max_failures: int = 10,
    patience: Patience = ONCE,
  ):
    """Makes a labeller; its threads start here.

    Args:
      decode_fn: latents → frames; called on the threads if there are any.
      rewards: what to score with.
      workers: threads; 0 labels in line.
      max_queue: batches that may wait; each holds its latents.
      max_failures: batches without a label in a row after which to stop.
      patience: how long and how often to ask the reward.

    Raises:
      ValueError: if a number is below its limit.
    """
    limits = {"workers": 0, "max_queue": 1, "max_failures": 1}
    given = {
      "workers": workers,
      "max_queue": max_queue,
      "max_failures": max_failures,
    }
    for name, limit in limits.items():
      if given[name] < limit:
        raise ValueError(
          f"{name} of labelling is {given[name]}; it must be >= {limit}"
        )
    self.counts = LabelCounts()
    self._decode_fn = decode_fn
    self._rewards = rewards
    self._max_queue = max_queue
    self._max_failures = max_failures
    self._patience = patience
    self._jobs: collections.deque[_Job] = collections.deque()
    self._closed = False
    self._error: BaseException | None = None
    self._told = False
    self._changed = threading.Condition()
    self._threads = [
      # daemon: a reward that hangs must not keep a dying program alive
      threading.Thread(target=self._work, name=f"labeller-{i}", daemon=True)
      for i in range(workers)
    ]
    for thread in self._threads:
      thread.start()

  @property
  def pending(self) -> int:
    """Batches submitted and not labelled yet."""
    with self._changed:
      return sum(job.labelled is None for job in self._jobs)

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
    if not self._threads:
      job.labelled, failures = self._label(job)
      self._jobs.append(job)
      self._count(failures)
      return
    with self._changed:
      self._changed.wait_for(
        lambda: self._error is not None or self._untouched() < self._max_queue
      )
      self._raise_error()
      self._jobs.append(job)
      self._changed.notify_all()

  def collect(self, until: float = -math.inf) -> list[LabelledBatch]:
    """Takes what is labelled, in the order it was submitted, each once.

    Args:
      until: waits for all that was submitted at this step or before;
        `math.inf` waits for everything.

    Raises:
      ValueError, Exception: as `submit`.
    """

    def awaited() -> bool:
      return any(
        job.labelled is None and job.step <= until for job in self._jobs
      )

    done = []
    with self._changed:
      self._changed.wait_for(lambda: self._error is not None or not awaited())
      self._raise_error()
      while self._jobs and self._jobs[0].labelled is not None:
        done.append(self._jobs.popleft().labelled)
    return done

  def close(self) -> None:
    """Ends the threads after the batches in hand; drops what is not collected.

    Raises an error of a thread that nobody was told of. May be called twice.
    """
    with self._changed:
      self._closed = True
      self._jobs.clear()
      self._changed.notify_all()
    for thread in self._threads:
      thread.join()
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

  def _untouched(self) -> int:
    return sum(not job.taken for job in self._jobs)

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._untouched())
        if self._closed or self._error is not None:
          return
        job = next(job for job in self._jobs if not job.taken)
        job.taken = True
        self._changed.notify_all()
      try:
        labelled, failures = self._label(job)
        with self._changed:
          job.labelled = labelled
          self._count(failures)
          self._changed.notify_all()
      except BaseException as error:  # it belongs to the main thread
        with self._changed:
          self._error = self._error or error
          self._changed.notify_all()
        return

  def _label(self, job: _Job) -> tuple[LabelledBatch, Failures]:
    frames = np.asarray(jax.device_get(self._decode_fn(job.x0)))
    values, failures = self._rewards.score(frames, job.prompts, self._patience)
    latents, text, text_mask = jax.device_get((job.x0, job.text, job.text_mask))
    batch = LabelledBatch(
      latents=np.asarray(latents, np.float32),
      text=text,
      text_mask=text_mask,
      values=values,
      valid=np.isfinite(values).all(axis=1),
      step_submitted=np.full(len(values), job.step, np.int64),
    )
    return batch, failures

  def _count(self, failures: Failures) -> None:
    """Counts a batch; raises ValueError if too many failed in a row."""
    self.counts = self.counts.after(failures)
    if failures.reason is not None:
      logging.log_every_n_seconds(
        logging.WARNING,
        "reward %s gave no value for %d of %d clips (%s)",
        60,
        self._rewards.name,
        failures.count,
        failures.total,
        failures.reason,
      )
    if self.counts.failed_in_a_row >= self._max_failures:
      raise ValueError(
        f"reward {self._rewards.name!r} failed in "
        f"{self.counts.failed_in_a_row} calls in a row, the last with "
        f"'{failures.reason}'; mend it, choose another, or allow more "
        "failures"
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
  from scipy import stats  # 1 s, only where pairs are compared

  return float(stats.spearmanr(*pairs).statistic)


def _hold(array: Any) -> Any:
  """The array as it is now: NumPy's may be written to after `submit`."""
  return np.array(array) if isinstance(array, np.ndarray) else array
