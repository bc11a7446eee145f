"""Prompts on their way into the shards of a set, alone or with samples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.interop.text_encoders import TextEncoder
from dollar_jax.programs._prepare_clips import embed


@dataclasses.dataclass(frozen=True)
class PromptMaker:
  """Makes the examples of prompts.

  Attributes:
    prompts: in order.
    names: of each example, from which its noise comes.
    text_encoder: embeds them.
    model: samples latents of them; None leaves the embeddings alone.
    batch_size: prompts sampled at once.
    seed: of the noise.
  """

  prompts: Sequence[str]
  names: Sequence[str]
  text_encoder: TextEncoder
  model: Pipeline | None
  batch_size: int
  seed: int

  def __len__(self) -> int:
    return len(self.prompts)

  def examples(
    self, rows: range, notes: dict[str, Any], done: Callable[[int], Any]
  ) -> Iterator[dict[str, Any]]:
    """The examples of some prompts.

    Args:
      rows: which.
      notes: filled with `skipped`.
      done: called with how many prompts are done, whenever some are.
    """
    texts, reasons = embed(self.text_encoder, [self.prompts[i] for i in rows])
    notes["skipped"] = [
      {"prompt": self.prompts[i], "reason": reason}
      for i, reason in zip(rows, reasons, strict=True)
      if reason
    ]
    done(len(notes["skipped"]))
    known = [(i, t) for i, t in zip(rows, texts, strict=True) if t is not None]
    for k, x0 in self._sampled(known):
      i, (text, mask) = known[k]
      example = {"text": text, "text_mask": mask, "prompt": self.prompts[i]}
      yield example if x0 is None else {**example, "latents": x0}
      done(1)

  def _sampled(
    self, known: list[tuple[int, tuple[np.ndarray, np.ndarray]]]
  ) -> Iterator[tuple[int, np.ndarray | None]]:
    """Indices of `known`, with the latents of each if there is a model."""
    if self.model is None:
      yield from ((k, None) for k in range(len(known)))
      return

    def stacked(some: list[int]) -> tuple[np.ndarray, np.ndarray]:
      text, mask = zip(*(known[k][1] for k in some), strict=True)
      return np.stack(text), np.stack(mask)

    batches = self.model.batches(
      [self.names[i] for i, _ in known],
      stacked,
      (self.text_encoder.max_length, self.text_encoder.dim),
      self.batch_size,
      self.seed,
      decode=False,
    )
    for batch in batches:
      yield from zip(batch.rows, batch.x0, strict=True)


def repeated(prompts: Sequence[str], count: int) -> tuple[list[str], list[str]]:
  """Each prompt `count` times, and a name of its own for each.

  A prompt that is given twice counts on.
  """
  seen: dict[str, int] = {}
  texts, names = [], []
  for prompt in prompts:
    for _ in range(count):
      seen[prompt] = seen.get(prompt, -1) + 1
      texts.append(prompt)
      names.append(f"{prompt}-{seen[prompt]}")
  return texts, names
