"""The training loop: cadence, progress, metrics, checkpoints, stopping."""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from dollar_jax.interop.buckets import place
from dollar_jax.interop.folders import write_json
from dollar_jax.parallel import processes
from dollar_jax.parallel.compilation import compile_together
from dollar_jax.parallel.machine import MACHINE, Pace, describe
from dollar_jax.parallel.rules import by_batch, shard_batch
from dollar_jax.train.checkpoint import Checkpointer
from dollar_jax.train.config import TrainConfig, to_dict
from dollar_jax.train.metrics import MetricsLog
from dollar_jax.train.preemption import on_sigterm
from dollar_jax.train.save_times import SaveTimes
from dollar_jax.typing import Array, PyTree

CONFIG = "config.json"
"""What a run's folder calls its config."""

STEPS = ("teacher", "warm-up", "score", "student")
"""Programs that every run of their task calls, the slowest to compile."""

MAX_SKIPPED_IN_ROW = 10
"""Updates skipped in a row for a non-finite loss that stop a run."""


class Batches:
  """Draws training batches onto the devices.

  Attributes:
    iterator: the grain iterator, whose state is checkpointed.
  """

  def __init__(
    self,
    make: Callable[[], grain.DatasetIterator],
    rows: Sequence[int],
    mesh: Mesh,
  ):
    """Begins with the first batch.

    Args:
      make: makes an iterator of some rows of every batch, see
        `data.pipeline.make_batches`.
      rows: which rows of the global batch it gives; see `mesh.process_rows`.
      mesh: where the batches go.
    """
    self.iterator = make()
    self._make, self._rows, self._mesh = make, np.array(rows), mesh

  def from_the_first(self) -> "Batches":
    """The same batches once more, beside these."""
    return Batches(self._make, self._rows, self._mesh)

  def next(self) -> tuple[PyTree, list[str]]:
    """Returns the next batch of arrays, sharded, and this process' prompts."""
    batch = dict(next(self.iterator))
    prompts = [str(p) for p in batch.pop("prompt")]
    return shard_batch(batch, self._mesh), prompts

  def all_prompts(self, prompts: list[str]) -> list[str]:
    """Prompts of the whole batch, from those of every process."""
    rows = processes.gather_rows(self._rows)
    texts = dict(zip(rows, processes.gather_texts(prompts), strict=True))
    return [texts[row] for row in sorted(texts)]


def batch_shapes(
  example: Mapping[str, Any], size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes of a batch, placed, from one example or its shapes.

  Args:
    example: `latents` [T, H, W, C], `text` [S, D], `text_mask` [S]; a prompt
      is left out.
    size: B, of the global batch.
    mesh: where it goes.
  """
  place = by_batch(mesh)
  return {
    name: jax.ShapeDtypeStruct((size, *row.shape), row.dtype, sharding=place)
    for name, row in example.items()
    if name != "prompt"
  }


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function of a run, and shapes of what it is called with.

  Leaves of the arguments that stay on the devices are those of the task's
  `resident` trees, the same objects.

  Attributes:
    run: the jitted function.
    args: its arguments, `jax.ShapeDtypeStruct`s with shardings.
  """

  run: Callable[..., Any]
  args: tuple[PyTree, ...]


class Task(Protocol):
  """One kind of training: a teacher, or a student with its critics."""

  description: dict[str, Any]
  """What must be equal for a checkpoint to fit."""

  def init(self) -> PyTree:
    """Returns the state before the first update."""

  def update(
    self, state: PyTree, batches: Batches, index: int
  ) -> tuple[PyTree, dict[str, Array]]:
    """Does update number `index`, from 0; metrics stay on the device."""

  def to_saved(self, state: PyTree) -> PyTree:
    """The state as the checkpoint keeps it, with what the host holds."""

  def from_saved(self, saved: PyTree) -> PyTree:
    """Inverse of `to_saved`."""

  def ended(self) -> str | None:
    """Why the run is to end before its last update; None: it is not."""

  def result(self, state: PyTree) -> PyTree:
    """The parameters that the run was made for."""

  def programs(self, batch: PyTree, start: int = 0) -> dict[str, Program]:
    """What the run compiles from update `start` on, by name.

    Args:
      batch: shapes of a batch, placed.
      start: updates that were done before.
    """

  def resident(self) -> dict[str, PyTree]:
    """Placed shapes of what stays on the devices, by name."""

  def close(self) -> None:
    """Ends what runs in the background."""


def named_key(seed: int, name: str, step: int, index: int = 0) -> Array:
  """The random key of one use at one step: resuming needs no stored stream."""
  # Put there explicitly and made into a key there: no implicit transfer.
  data = np.array([seed, zlib.crc32(name.encode()), step, index], np.uint32)
  return _make_key(jax.device_put(data))


@jax.jit
def _make_key(data: Array) -> Array:
  key = jax.random.key(data[0])
  for i in range(1, 4):
    key = jax.random.fold_in(key, data[i])
  return key


def fit(
  task: Task,
  batches: Batches,
  config: TrainConfig,
  workdir: str,
  progress: bool = True,
  notes: Mapping[str, dict[str, Any]] | None = None,
  shapes: PyTree | None = None,
) -> PyTree:
  """Trains to `config.steps`, going on from the newest checkpoint if any.

  The order is: update, log, save; a batch is drawn only inside an update, so
  that the saved iterator stands exactly between two updates.

  Args:
    task: what to train.
    batches: where its batches come from.
    config: the run.
    workdir: its folder: `checkpoints/`, `metrics.jsonl`, and at the end
      `machine.json`: what it ran on, and how fast.
    progress: whether to show a bar.
    notes: what else the folder should say of this run, by the name of a JSON
      file; written once it is clear that a checkpoint there is of this run.
    shapes: of a batch, placed, for which the steps are compiled side by side
      before the first update; None compiles each when it is called.

  Returns:
    The final state.

  Raises:
    ValueError: if updates are not finite ten times in a row, or a checkpoint
      there is of another run or cannot be read.
    InterruptedError: after SIGTERM, once the last step is saved.
    OSError: if the disk is full.
  """
  with contextlib.ExitStack() as stack:
    stack.callback(task.close)
    checkpointer = Checkpointer(workdir, config.checkpoint, task.description)
    stack.callback(checkpointer.close)
    state, start = task.init(), 0
    restored = checkpointer.restore(task.to_saved(state), batches.iterator)
    if restored is not None:
      start, state = restored[0], task.from_saved(restored[1])
    log = None
    if processes.is_first():
      for name, note in {CONFIG: to_dict(config), **(notes or {})}.items():
        write_json(place(workdir) / name, note)
      log = MetricsLog(workdir, start, config.tensorboard)
      stack.callback(log.close)
    bar = tqdm(
      range(start, config.steps),
      initial=start,
      total=config.steps,
      desc=config.task,
      unit="step",
      # None: where stderr is no terminal
      disable=None if progress and processes.is_first() else True,
      mininterval=1.0,
    )
    stack.callback(bar.close)
    stop = stack.enter_context(on_sigterm())
    times = SaveTimes(config.checkpoint, start)
    if shapes is not None and start < config.steps and not task.ended():
      bar.set_postfix_str("compiling")
      programs = task.programs(shapes, start)
      steps = [programs[name] for name in STEPS if name in programs]
      compile_together((one.run, one.args) for one in steps)
    behind: dict[str, Array] = {}
    pace = Pace()
    for index in bar:
      if task.ended():  # as the checkpoint says
        break
      step = index + 1
      pace.start()
      state, metrics = task.update(state, batches, index)
      # the check reads the step before, so the device never waits for it
      _check_finite(behind, index, config.task)
      behind = metrics
      last = step == config.steps or task.ended() is not None
      # the guard's first look comes when it comes
      looked = any(name.startswith("guard/") for name in metrics)
      if step % config.log_every == 0 or last or looked:
        row = jax.device_get(metrics)
        if log is not None:
          log.write(step, row)
        shown = {k: f"{float(v):.3g}" for k, v in list(row.items())[:4]}
        bar.set_postfix(shown, refresh=False)
      stopping = stop.due(step) and not last
      if times.due(step) or last or stopping:
        _check_finite(behind, step, config.task)
        if log is not None:
          log.sync()
        checkpointer.save(step, task.to_saved(state), batches.iterator)
        times.saved(step)
      pace.stop()
      if stopping:
        checkpointer.wait()
        raise InterruptedError(
          f"stopped by SIGTERM after step {step}, which is saved; run the same "
          "command again to go on"
        )
    checkpointer.wait()
    if pace.median and log is not None:
      note = {"seconds_per_step": pace.median, **describe()}
      write_json(place(workdir) / MACHINE, note)
    if task.ended():
      logging.warning("%s", task.ended())
  return state


_NETWORKS = {
  "teacher": "teacher",
  "distill": "student",
  "score": "fake score",
  "lrm": "latent reward model",
}
"""Names of networks, by the prefix of their metrics or else by the task."""


def _check_finite(metrics: dict[str, Array], step: int, task: str) -> None:
  for name, value in metrics.items():
    if not name.endswith("skipped_in_row"):
      continue
    if jax.device_get(value) >= MAX_SKIPPED_IN_ROW:
      prefix = name.removesuffix("skipped_in_row").strip("_") or task
      raise ValueError(
        f"the {_NETWORKS[prefix]}'s loss or gradient was not finite in "
        f"{MAX_SKIPPED_IN_ROW} updates in a row, up to step {step}; lower "
        "its learning rate, or go on from an earlier checkpoint"
      )
