"""Metrics of a run: JSON lines always, TensorBoard on request."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath


class MetricsLog:
  """Appends rows to `workdir/metrics.jsonl`, one JSON object a line.

  A resumed run drops the rows of steps it is about to repeat.
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
    self._path = epath.Path(workdir) / "metrics.jsonl"
    kept = [row for row in read(workdir) if row["step"] <= start]
    self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    self._file = self._path.open("a")
    self._writer = _tensorboard_writer(workdir) if tensorboard else None

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars of one step."""
    row = {name: float(value) for name, value in values.items()}
    self._file.write(json.dumps({"step": step, **row}) + "\n")
    self._file.flush()
    if self._writer is not None:
      self._writer.write_scalars(step, row)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._writer is not None:
      self._writer.close()


def read(workdir: str) -> list[dict[str, float]]:
  """The rows of a run, oldest first; a torn last line is left out."""
  path = epath.Path(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break  # the process died while it wrote this line
  return rows


def _tensorboard_writer(workdir: str) -> Any:
  try:
    from clu import metric_writers
  except ImportError as error:
    raise ValueError(
      f"config.tensorboard is True, but {error.name} is not installed; "
      "run `pip install -e .[tensorboard]`"
    ) from None
  return metric_writers.SummaryWriter(workdir)
