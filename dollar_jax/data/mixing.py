"""Several data sets as one stream of batches: by weight, and of one shape each.

Sets whose latents have one shape are a bucket. Every batch is of one bucket,
and which one follows from its number alone, so that all hosts agree and a
stream goes on wherever it stopped. Shares are met as closely as whole batches
and whole videos allow, not by chance.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from dollar_jax.data.pipeline import (
  USUAL,
  ReadAhead,
  batch_bytes,
  batched,
  endless,
)


def parse_sources(text: str) -> dict[str, float | None]:
  """Reads "FOLDER" or "FOLDER=WEIGHT,FOLDER=WEIGHT".

  Returns:
    folder → weight, None where all are left to the sets' sizes.

  Raises:
    ValueError: if an entry is empty or stands there twice, a weight is not
      above 0, or only some have one.
  """
  if Path(text).is_dir():  # whatever is in its name
    return {text: None}
  sources: dict[str, float | None] = {}
  for entry in map(str.strip, text.split(",")):
    folder, weighted, weight = entry.rpartition("=")
    if not weighted or Path(entry).is_dir():
      folder, weighted = entry, ""
    if not folder or folder in sources:
      raise ValueError(
        f"config.data.source={text} has an empty entry or one twice; give "
        "FOLDER=WEIGHT,FOLDER=WEIGHT, each folder once"
      )
    sources[folder] = _weight(weight, text) if weighted else None
  if len({weight is None for weight in sources.values()}) > 1:
    raise ValueError(
      f"config.data.source={text} has weights for some sets only; give one "
      "for each, or for none, which then count by their sizes"
    )
  return sources


def _weight(text: str, whole: str) -> float:
  try:
    weight = float(text)
  except ValueError:
    weight = 0.0
  if not 0 < weight < math.inf:
    raise ValueError(
      f"config.data.source={whole} has weight {text!r}; it must be a number "
      "above 0"
    )
  return weight


def mix_batches(
  sources: Sequence[Any],
  weights: Sequence[float],
  batch_size: int,
  seed: int,
  rows: Sequence[int] | None = None,
  ahead: ReadAhead = USUAL,
) -> grain.DatasetIterator:
  """Builds the iterator of training batches of several sets.

  Args:
    sources: as `pipeline.make_batches` takes one; with one of them the batches
      are those that it makes.
    weights: share of each in what is drawn, in any unit.
    batch_size: B, of the global batch.
    seed: of the shuffles.
    rows: those of the global batch that this process needs; None is all.
    ahead: how much is read before it is asked for; of several shapes the
      largest counts.

  Returns:
    As `pipeline.make_batches`.

  Raises:
    ValueError: if the sets of one shape are smaller than one global batch.
  """
  buckets: dict[tuple[int, ...], list[int]] = {}
  largest, count = 0, batch_size if rows is None else len(rows)
  for i, source in enumerate(sources):
    example = source[0]
    buckets.setdefault(example["latents"].shape, []).append(i)
    largest = max(largest, batch_bytes(example, count))
  streams, shares = [], []
  for members in buckets.values():
    data = [endless(sources[i], (seed + i) % 2**32) for i in members]
    own = [weights[i] for i in members]
    total = sum(len(sources[i]) for i in members)
    streams.append(batched(_mixed(data, own), total, batch_size, rows))
    shares.append(sum(own))
  data = _mixed(streams, shares).to_iter_dataset(ahead.options(largest))
  return iter(data)


def _mixed(
  data: list[grain.MapDataset], weights: list[float]
) -> grain.MapDataset:
  return grain.MapDataset.mix(data, weights) if len(data) > 1 else data[0]
