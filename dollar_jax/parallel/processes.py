"""What the processes of one run have in common, and who writes it down.

Every process computes the same things on the same global arrays; files are
written by the first, and what lies on several hosts is gathered on all. With
one process nothing here costs anything.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from dollar_jax.typing import Array, PyTree


def is_first() -> bool:
  """Whether this process writes files and speaks for all."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns when every process has come here; `name` is that of the place."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def to_host(tree: PyTree) -> PyTree:
  """Whole arrays in every process, one leaf after another."""

  def fetch(leaf: Array) -> np.ndarray:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return jax.device_get(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(fetch, tree)


def gather_rows(array: np.ndarray) -> np.ndarray:
  """Rows of all processes [P * B, ...] from those of each [B, ...]."""
  if jax.process_count() == 1:
    return array
  return multihost_utils.process_allgather(array, tiled=True)


def share_of_rows(count: int) -> list[int]:
  """This process' share of work on `count` rows; all shares are as long.

  The last ones may have rows that others have too.
  """
  size = -(-count // jax.process_count())
  start = jax.process_index() * size
  return [(start + i) % count for i in range(size)]


def gather_shares(array: np.ndarray, count: int) -> np.ndarray:
  """All `count` rows, from what was made of each `share_of_rows`."""
  return gather_rows(array)[:count]


def gather_texts(texts: Sequence[str]) -> list[str]:
  """The texts of all processes, of which each has as many."""
  if jax.process_count() == 1:
    return list(texts)
  encoded = [text.encode() for text in texts]
  longest = gather_rows(np.array([max(map(len, encoded))]))
  rows = np.zeros((len(texts), 4 + longest.max()), np.uint8)
  for row, text in zip(rows, encoded, strict=True):
    row[:4] = np.frombuffer(np.uint32(len(text)).tobytes(), np.uint8)
    row[4 : 4 + len(text)] = np.frombuffer(text, np.uint8)
  found = []
  for row in gather_rows(rows):
    size = int(row[:4].copy().view(np.uint32)[0])
    found.append(row[4 : 4 + size].tobytes().decode())
  return found
