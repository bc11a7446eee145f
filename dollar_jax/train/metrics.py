"""Metrics of a run: JSON lines always, TensorBoard on request."""

import io
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from dollar_jax.files import write_text
from dollar_jax.interop.buckets import is_remote, place

TITLES = {
  "score_loss": "fake score: denoising loss",
  "vsd_force": "VSD gradient, RMS an element",
  "consistency": "consistency loss",
  "grad_norm": "gradient norm",
  "lrm_loss": "latent reward model: squared error",
  "lrm_spearman": "latent against true reward, Spearman",
}
"""What a curve of a metric is called; others go by their own names."""

_SECONDS = 60
"""Between two writes of an object in a bucket."""


class MetricsLog:
  """Appends rows to `workdir/metrics.jsonl`, one JSON object a line.

  A resumed run drops the rows of steps it is about to repeat. To an object in a
  bucket nothing can be appended: it is written anew, every minute at most and
  before every checkpoint.
  """

  def __init__(self, workdir: str, start: int, tensorboard: bool = False):
    """Opens the log.

    Args:
      workdir: the run's folder.
      start: the step the run begins or goes on from; later rows are dropped.
      tensorboard: whether to write events too.

    Raises:
      ValueError: if TensorBoard is asked for and not installed.
    """
    self._writer = _tensorboard_writer(workdir) if tensorboard else None
    self._path = place(workdir) / "metrics.jsonl"
    rows = [row for row in read(workdir) if row["step"] <= start]
    kept = "".join(_line(row) for row in rows)
    self._remote, self._written = is_remote(self._path), 0.0
    if self._remote:
      self._file = io.StringIO(kept)
      self._file.seek(0, io.SEEK_END)
      self.sync()
    else:
      write_text(self._path, kept)  # killed here, the rows are not lost
      self._file = self._path.open("a")

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars of one step; what is not finite as null."""
    row = {name: float(value) for name, value in values.items()}
    self._file.write(_line({"step": step, **row}))
    self._file.flush()
    if time.monotonic() - self._written > _SECONDS:
      self.sync()
    if self._writer is not None:
      self._writer.write_scalars(step, row)

  def sync(self) -> None:
    """Brings all rows to where they can be read."""
    if self._remote:
      self._path.write_text(self._file.getvalue())
      self._written = time.monotonic()

  def close(self) -> None:
    """Closes the files."""
    self.sync()
    self._file.close()
    if self._writer is not None:
      self._writer.close()


def read(workdir: str) -> list[dict[str, float]]:
  """The rows of a run, oldest first; a torn last line is left out.

  What was not finite is NaN.
  """
  path = place(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break  # the process died while it wrote this line
    rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows


def _line(row: Mapping[str, float]) -> str:
  # NaN is Python's JSON only; browsers and jq refuse the file for it.
  plain = {k: v if math.isfinite(v) else None for k, v in row.items()}
  return json.dumps(plain) + "\n"


def _tensorboard_writer(workdir: str) -> Any:
  try:
    from clu import metric_writers
  except ImportError as error:
    raise ValueError(
      f"config.tensorboard is True, but {error.name} is not installed; "
      "run `pip install -e .[tensorboard]`"
    ) from None
  return metric_writers.SummaryWriter(workdir)
