"""Text encoders: prompts in, padded embeddings and their mask out."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TextEncoder(Protocol):
  """What every frozen text encoder offers.

  Attributes:
    dim: D, width of an embedding.
    max_length: S, tokens that a prompt is padded to.
  """

  dim: int
  max_length: int

  def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeds prompts.

    Args:
      prompts: B prompts; "" is the null prompt.

    Returns:
      (text float32 [B, S, D], mask bool [B, S]); text is zero where the mask
      is False.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class WordEncoder:
  """One fixed vector a word of a closed vocabulary.

  Words are split at blanks and lower-cased. Entries have unit mean square.
  The order of words is not encoded: cross-attention sees a set.

  Attributes:
    words: the vocabulary, sorted.
    table: [words, D] float32, row i embeds word i.
    max_length: S, most words in a prompt.
  """

  words: tuple[str, ...]
  table: np.ndarray
  max_length: int

  def __post_init__(self):
    bad = [w for w in self.words if w.split() != [w] or w != w.lower()]
    if not self.words or bad or list(self.words) != sorted(set(self.words)):
      raise ValueError(
        f"vocabulary {list(self.words)} is not usable; give at least one "
        "word, lower-case, without blanks, each once and sorted"
      )
    if self.max_length < 1:
      raise ValueError(f"max_length is {self.max_length}; use at least 1")
    if self.table.ndim != 2 or len(self.table) != len(self.words):
      raise ValueError(
        f"word table has shape {self.table.shape}; {len(self.words)} words "
        f"need [{len(self.words)}, dim]"
      )

  @classmethod
  def create(
    cls, words: Iterable[str], dim: int, max_length: int, seed: int = 0
  ) -> "WordEncoder":
    """Makes the table from a seed.

    Rows are orthogonal as long as there are at most `dim` words, otherwise
    independent. The entries come from the raw 64-bit stream of PCG64, which
    numpy promises to keep (its normal draws it does not).

    Args:
      words: the vocabulary in any order; repeats are dropped.
      dim: D.
      max_length: S, most words in a prompt.
      seed: of the table.

    Raises:
      ValueError: for an empty vocabulary, a word with a blank or a capital,
        or sizes below 1.
    """
    words = tuple(sorted(set(words)))
    if dim < 1:
      raise ValueError(f"text dim is {dim}; use at least 1")
    return cls(words, _make_table(len(words), dim, seed), max_length)

  @property
  def dim(self) -> int:
    """D, width of an embedding."""
    return self.table.shape[1]

  @property
  def config(self) -> dict[str, Any]:
    """What config.json holds beside the arrays."""
    return {
      "words": list(self.words),
      "dim": self.dim,
      "max_length": self.max_length,
    }

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """What the safetensors file holds."""
    return {"table": self.table}

  @classmethod
  def from_arrays(
    cls, config: dict[str, Any], arrays: dict[str, np.ndarray]
  ) -> "WordEncoder":
    """Rebuilds an encoder from `config` and `arrays`."""
    return cls(tuple(config["words"]), arrays["table"], config["max_length"])

  def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeds prompts; see `TextEncoder.encode`.

    Raises:
      ValueError: for a word outside the vocabulary, a prompt of more than
        `max_length` words, or prompts that are no list of strings.
    """
    if isinstance(prompts, str) or not all(
      isinstance(prompt, str) for prompt in prompts
    ):
      raise ValueError(f"prompts is {prompts!r}; give a list of strings")
    rows = {word: i for i, word in enumerate(self.words)}
    text = np.zeros((len(prompts), self.max_length, self.dim), np.float32)
    mask = np.zeros((len(prompts), self.max_length), bool)
    for b, prompt in enumerate(prompts):
      words = prompt.lower().split()
      if len(words) > self.max_length:
        raise ValueError(
          f"prompt {prompt!r} has {len(words)} words; this model reads at "
          f"most {self.max_length}: shorten it"
        )
      for s, word in enumerate(words):
        if word not in rows:
          raise ValueError(self._unknown(word, prompt))
        text[b, s] = self.table[rows[word]]
        mask[b, s] = True
    return text, mask

  def _unknown(self, word: str, prompt: str) -> str:
    close = difflib.get_close_matches(word, self.words, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = " ".join(self.words[:40])
    if len(self.words) > 40:
      shown += f" … ({len(self.words)} in all)"
    return (
      f"word {word!r} in prompt {prompt!r} is not in this model's "
      f"vocabulary; {hint}it knows: {shown}"
    )


def _make_table(rows: int, dim: int, seed: int) -> np.ndarray:
  """[rows, dim] float32 of unit mean square a row, orthogonal if it can be."""
  count = rows * dim
  bits = np.random.PCG64(seed).random_raw(2 * count) >> np.uint64(11)
  u, v = ((bits.astype(np.float64) + 0.5) * 2.0**-53).reshape(2, rows, dim)
  table = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)  # Box-Muller
  for i in range(rows):
    if rows <= dim:
      for _ in range(2):  # a second pass removes what rounding left
        table[i] -= table[:i].T @ (table[:i] @ table[i]) / dim
    table[i] *= np.sqrt(dim / np.sum(table[i] ** 2))
  return table.astype(np.float32)
