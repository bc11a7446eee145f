"""grain batches over a latent set: shuffled, endless, exactly resumable."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np


def make_batches(
  source: Any,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
) -> grain.DatasetIterator:
  """Builds the iterator of training batches.

  Args:
    source: random access to dicts of `latents`, `text`, `text_mask`, `prompt`.
    batch_size: B, of the global batch.
    seed: of the shuffle, another order every epoch.
    rows: those of the global batch that this process needs; None is all.

  Returns:
    An iterator with `get_state`/`set_state`, of dicts of arrays with a
    leading batch axis; `prompt` is an array of strings.

  Raises:
    ValueError: if the set is smaller than one global batch.
  """
  data = endless(source, seed)
  return iter(batched(data, len(source), batch_size, rows).to_iter_dataset())


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
  return data.map(_plain).batch(batch_size)


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
