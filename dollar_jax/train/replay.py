"""The latest labelled samples, kept for the latent reward model to replay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar_jax.train.labels import LabelledBatch


class LabelBuffer:
  """The latest labelled latents, in a ring of fixed size.

  Drawing is a pure function of contents, seed and step, and the state is
  arrays of fixed shape, so a resumed run draws what the unbroken one would.

  Attributes:
    count: samples held, at most the capacity.
  """

  def __init__(
    self,
    capacity: int,
    latent_shape: Sequence[int],
    text_shape: Sequence[int] | None = None,
    rewards: int = 1,
    seed: int = 0,
  ):
    """Makes an empty buffer, its memory taken at once.

    Args:
      capacity: samples to keep; the oldest go first.
      latent_shape: T, H, W, C.
      text_shape: S, D; None keeps no text.
      rewards: M, values a sample has.
      seed: seed of the draws, at least 0.

    Raises:
      ValueError: if the capacity is below 1.
    """
    if capacity < 1:
      raise ValueError(f"capacity of the label buffer is {capacity}, below 1")
    self.count = 0
    self._cursor = 0
    self._seed = seed
    self._rows = {
      "latents": np.zeros((capacity, *latent_shape), np.float32),
      "values": np.zeros((capacity, rewards), np.float32),
      "step_submitted": np.zeros(capacity, np.int64),
    }
    if text_shape is not None:
      tokens, width = text_shape
      self._rows["text"] = np.zeros((capacity, tokens, width), np.float32)
      self._rows["text_mask"] = np.zeros((capacity, tokens), bool)

  def add(self, batch: LabelledBatch) -> None:
    """Keeps the valid samples of a batch.

    Raises:
      ValueError: if a shape is not the buffer's.
    """
    capacity = len(self._rows["values"])
    taken = np.flatnonzero(batch.valid)
    for name, rows in self._rows.items():
      shape = np.shape(getattr(batch, name))
      wanted = (len(batch.valid), *rows.shape[1:])
      if shape != wanted:
        raise ValueError(
          f"{name} of a labelled batch has shape {list(shape)}; the label "
          f"buffer needs {list(wanted)}"
        )
    taken = taken[-capacity:]
    places = (self._cursor + np.arange(len(taken))) % capacity
    for name, rows in self._rows.items():
      rows[places] = getattr(batch, name)[taken]
    self._cursor = int((self._cursor + len(taken)) % capacity)
    self.count = min(self.count + len(taken), capacity)

  def sample(self, size: int, step: int) -> LabelledBatch:
    """Draws a batch, each sample at most once if there are enough.

    Args:
      size: B.
      step: at least 0; the same step draws the same places.

    Raises:
      ValueError: if the buffer is empty.
    """
    if not self.count:
      raise ValueError(
        "the label buffer is empty; label a batch before drawing one"
      )
    rng = np.random.default_rng([self._seed, step])
    places = rng.choice(self.count, size, replace=size > self.count)
    drawn = {name: rows[places] for name, rows in self._rows.items()}
    return LabelledBatch(
      **{"text": None, "text_mask": None, **drawn},
      valid=np.ones(size, bool),
    )

  def state_dict(self) -> dict[str, np.ndarray]:
    """Copies of all arrays: shapes never change, the seed is not among them."""
    state = {name: rows.copy() for name, rows in self._rows.items()}
    state["count"] = np.array(self.count, np.int64)
    state["cursor"] = np.array(self._cursor, np.int64)
    return state

  def load_state(self, state: dict[str, Any]) -> None:
    """Takes over what `state_dict` gave.

    Raises:
      ValueError: if it is the state of a buffer of another size.
    """
    mine = {name: rows.shape for name, rows in self.state_dict().items()}
    theirs = {name: np.shape(rows) for name, rows in state.items()}
    if mine != theirs:
      raise ValueError(
        f"the saved label buffer has shapes {theirs}, this run's has {mine}; "
        "resume with the same reward settings"
      )
    for name, rows in self._rows.items():
      rows[...] = np.asarray(state[name])
    self.count = int(state["count"])
    self._cursor = int(state["cursor"])
