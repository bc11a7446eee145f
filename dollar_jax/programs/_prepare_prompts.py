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
    for start in range(0, len(known), self.batch_size):
      some = known[start : start + self.batch_size]
      latents = self._sampled(some)
      for row, (i, (text, mask)) in enumerate(some):
        example = {"text": text, "text_mask": mask, "prompt": self.prompts[i]}
        if latents is not None:
          example["latents"] = latents[row]
        yield example
      done(len(some))

  def _sampled(self, some: list[tuple]) -> np.ndarray | None:
    if self.model is None:
      return None
    # one shape, one compilation
    padded = some + some[-1:] * (self.batch_size - len(some))
    text, mask = (np.stack([t[n] for _, t in padded]) for n in (0, 1))
    names = [self.names[i] for i, _ in padded]
    noises = self.model.draw_noise(names, self.seed)
    x0 = self.model.sample_latents(text, mask, noises)
    return np.asarray(x0, np.float32)


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
