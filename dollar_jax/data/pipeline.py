"""grain batches over a latent set: shuffled, endless, exactly resumable."""

from typing import Any

import grain
import numpy as np


def make_batches(
  source: Any,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Builds the iterator of training batches.

  Args:
    source: random access to dicts of `latents`, `text`, `text_mask`, `prompt`.
    batch_size: global batch; each process draws its share.
    seed: of the shuffle, another order every epoch.
    process_index: this process.
    process_count: number of processes.

  Returns:
    An iterator with `get_state`/`set_state`, of dicts of arrays with a
    leading batch axis; `prompt` is an array of strings.

  Raises:
    ValueError: if the batch does not divide among the processes, or the set
      is smaller than one global batch.
  """
  if batch_size % process_count:
    raise ValueError(
      f"batch size {batch_size} does not divide among {process_count} processes"
    )
  share = batch_size // process_count
  data = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  data = data[process_index::process_count].map(_plain).batch(share)
  if len(source) < batch_size:
    raise ValueError(
      f"the data set holds {len(source)} videos, fewer than one batch of "
      f"{batch_size}; lower data.batch_size or add videos"
    )
  return iter(data.to_iter_dataset())


def _plain(example: dict) -> dict:
  prompt = example["prompt"]
  if isinstance(prompt, bytes):
    prompt = prompt.decode()
  return {**example, "prompt": np.asarray(prompt)}
