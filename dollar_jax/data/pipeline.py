"""grain batches over a latent set: shuffled, endless, exactly resumable."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

MOST_THREADS = 16
"""That read batches at once."""


@dataclasses.dataclass(frozen=True)
class ReadAhead:
  """What a process reads before it is asked for.

  Attributes:
    batches: as many at most; 0 reads each when it is asked for.
    bytes: that these may take at most.
  """

  batches: int = 1
  bytes: float = 4 * 2.0**30

  def count(self, batch_bytes: int) -> int:
    """How many batches of that size are read ahead."""
    return min(self.batches, int(self.bytes // max(batch_bytes, 1)))

  def options(self, batch_bytes: int) -> grain.ReadOptions:
    """The same for grain, whose unit is what an element is: a batch.

    grain's own default is 500 of them. What its threads are at is part of what
    it counts; the batch that is being handed over is not, and comes on top.
    """
    count = self.count(batch_bytes)
    return grain.ReadOptions(min(count, MOST_THREADS), count)


USUAL = ReadAhead()


def make_batches(
  source: Any,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  ahead: ReadAhead = USUAL,
) -> grain.DatasetIterator:
  """Builds the iterator of training batches.

  Args:
    source: random access to dicts of `latents`, `text`, `text_mask`, `prompt`.
    batch_size: B, of the global batch.
    seed: of the shuffle, another order every epoch.
    rows: those of the global batch that this process needs; None is all.
    ahead: how much is read before it is asked for.

  Returns:
    An iterator with `get_state`/`set_state`, of dicts of arrays with a
    leading batch axis; `prompt` is an array of strings.

  Raises:
    ValueError: if the set is smaller than one global batch.
  """
  data = batched(endless(source, seed), len(source), batch_size, rows)
  size = batch_bytes(source[0], batch_size if rows is None else len(rows))
  return iter(data.to_iter_dataset(ahead.options(size)))


def batch_bytes(example: dict, rows: int) -> int:
  """Bytes of a batch of as many rows as large as an example."""
  return rows * sum(np.asarray(value).nbytes for value in example.values())


def endless(source: Any, seed: int) -> grain.MapDataset:
  """A source again and again, in another order every time."""
  return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def batched(
  data: grain.MapDataset,
  count: int,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.MapDataset:
  """This process' rows of the global batches of an endless data set.

  Args:
    data: of dicts, see `make_batches`.
    count: how many different ones it has.
    batch_size: B, of the global batch.
    rows: see `make_batches`.

  Raises:
    ValueError: if there are fewer than one global batch.
  """
  if count < batch_size:
    raise ValueError(
      f"the data set holds {count} videos, fewer than one batch of "
      f"{batch_size}; lower data.batch_size or add videos"
    )
  if rows is not None and len(rows) < batch_size:
    data = grain.MapDataset.source(_Share(data, batch_size, tuple(rows)))
    batch_size = len(rows)
  return data.map(_plain).batch(batch_size, batch_fn=_stack)


@dataclasses.dataclass(frozen=True)
class _Share:
  """Some rows of every global batch, one after another."""

  data: grain.MapDataset
  batch_size: int
  rows: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.data) // self.batch_size * len(self.rows)

  def __getitem__(self, index: int) -> dict:
    batch, row = divmod(index, len(self.rows))
    return self.data[batch * self.batch_size + self.rows[row]]


def _plain(example: dict) -> dict:
  prompt = example["prompt"]
  if isinstance(prompt, bytes):
    prompt = prompt.decode()
  return {**example, "prompt": np.asarray(prompt)}


def _stack(rows: Sequence[dict]) -> dict:
  """A batch of rows, each of which is let go as soon as it is copied.

  What is not yet written to of an array takes no memory, so that a batch of
  long videos is never there twice.

  Raises:
    ValueError: if the rows are not of one shape.
  """
  batch = {"prompt": np.stack([row.pop("prompt") for row in rows])}
  for name, first in rows[0].items():
    first = np.asarray(first)
    batch[name] = np.empty((len(rows), *first.shape), first.dtype)
  for i, row in enumerate(rows):
    for name, places in batch.items():
      if name == "prompt":
        continue
      value = np.asarray(row.pop(name))
      if value.shape != places.shape[1:]:
        raise ValueError(
          f"the data set has {name} of shapes {places.shape[1:]} and "
          f"{value.shape}; prepare its parts alike"
        )
      places[i] = value
  return batch
