"""The T5 text encoders of Wan and CogVideoX, run by transformers.

They are frozen and slow, so that each prompt is embedded once: what was
embedded is kept in files and read from there. torch and transformers are
imported only when a prompt has to be embedded.
"""

import dataclasses
import functools
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dollar_jax.files import user_cache
from dollar_jax.interop.folders import read_json
from dollar_jax.interop.weights import read_weights

WEIGHTS = "model"


@dataclasses.dataclass(frozen=True)
class Family:
  """How one pipeline of diffusers hands its prompts to T5.

  Attributes:
    max_length: S, tokens a prompt is padded or cut to.
    tidy: whether blanks, HTML entities and broken Unicode are mended first.
    masked: whether the encoder does not see the padding, whose embeddings are
      then zero.
  """

  max_length: int
  tidy: bool
  masked: bool


FAMILIES = {
  "UMT5EncoderModel": Family(max_length=512, tidy=True, masked=True),
  "T5EncoderModel": Family(max_length=226, tidy=False, masked=False),
}
"""By transformers' class: that of Wan, and that of CogVideoX."""


class T5Encoder:
  """A pipeline folder's `text_encoder` and `tokenizer`.

  Attributes:
    kind: transformers' class, a key of `FAMILIES`.
    dim: D, width of an embedding.
    max_length: S, tokens that a prompt is padded to.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    cache: str | os.PathLike | None = None,
    batch_size: int = 8,
  ):
    """Checks the files; loads nothing.

    Args:
      folder: the pipeline's folder.
      cache: where embeddings are kept; None is dollar_jax in the user's own
        cache folder.
      batch_size: prompts embedded at once.

    Raises:
      ValueError: if a part is missing, damaged, a pickle, or of a class that
        no known pipeline uses.
    """
    self._folder, self._batch_size = Path(folder), batch_size
    self._encoder = self._folder / "text_encoder"
    self._tokenizer = self._folder / "tokenizer"
    config = read_json(self._encoder / "config.json")
    self.kind = (config.get("architectures") or [None])[0]
    if self.kind not in FAMILIES:
      raise ValueError(
        f"{self._encoder} holds a text encoder of class {self.kind!r}; known "
        f"are {sorted(FAMILIES)}"
      )
    if not self._tokenizer.is_dir():
      raise ValueError(
        f"{self._folder} has a text encoder but no tokenizer/; finish the "
        "download"
      )
    read_weights(self._encoder, WEIGHTS)  # all there, and no pickle
    self._family = FAMILIES[self.kind]
    self.dim, self.max_length = config["d_model"], self._family.max_length
    root = Path(cache) if cache is not None else user_cache("text")
    self._cache = root / self._fingerprint()

  def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeds prompts; those embedded before are read from the cache.

    Args:
      prompts: B prompts; "" is the null prompt. What is longer than S tokens
        is cut, as the pipelines do, and logged.

    Returns:
      (text float32 [B, S, D], mask bool [B, S]); text is zero where the mask
      is False. The mask is all True where the network sees the padding, too.

    Raises:
      ValueError: if transformers or torch is not installed.
      OSError: if the cache cannot be written.
    """
    absent = [p for p in dict.fromkeys(prompts) if not self._file(p).is_file()]
    self._cache.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(absent), self._batch_size):
      some = absent[start : start + self._batch_size]
      for prompt, words in zip(some, self._embed(some), strict=True):
        _write(self._file(prompt), words)
    text = np.zeros((len(prompts), self.max_length, self.dim), np.float32)
    mask = np.zeros((len(prompts), self.max_length), bool)
    for row, prompt in enumerate(prompts):
      words = np.load(self._file(prompt), allow_pickle=False)
      text[row, : len(words)] = words
      mask[row, : len(words)] = True
    return text, mask

  def copy_to(self, folder: Path) -> dict[str, list[str]]:
    """Copies encoder and tokenizer, untouched, into a pipeline folder.

    Returns:
      Their entries in model_index.json.
    """
    for part in (self._encoder, self._tokenizer):
      shutil.copytree(part, folder / part.name)
    file = self._tokenizer / "tokenizer_config.json"
    kind = read_json(file).get("tokenizer_class", "T5TokenizerFast")
    return {
      "text_encoder": ["transformers", self.kind],
      "tokenizer": ["transformers", kind],
    }

  @functools.cached_property
  def content(self) -> str:
    """A name for what the files hold, wherever they lie.

    Of a file above 32 MiB its size, its first and its last MiB count.
    """
    digest = hashlib.sha256(self.kind.encode())
    for part in (self._encoder, self._tokenizer):
      for path in sorted(part.rglob("*")):
        if path.is_file():
          name, size = path.relative_to(part).as_posix(), path.stat().st_size
          digest.update(f"{part.name}/{name} {size}".encode())
          with path.open("rb") as file:
            if size <= 32 << 20:
              digest.update(file.read())
            else:
              digest.update(file.read(1 << 20))
              file.seek(-1 << 20, os.SEEK_END)
              digest.update(file.read())
    return digest.hexdigest()[:16]

  def _embed(self, prompts: list[str]) -> list[np.ndarray]:
    """The embeddings [n, D] of each prompt, n = S where padding counts."""
    import torch

    tokenizer, model = self._loaded
    if self._family.tidy:
      prompts = [_tidy(prompt) for prompt in prompts]
    tokens = tokenizer(
      prompts,
      padding="max_length",
      max_length=self.max_length,
      truncation=True,
      add_special_tokens=True,
      return_attention_mask=True,
      return_tensors="pt",
    )
    for prompt, ids in zip(prompts, tokenizer(prompts).input_ids, strict=True):
      if len(ids) > self.max_length:
        logging.warning(
          "prompt %.60r… has %d tokens and is cut to %d",
          prompt,
          len(ids),
          self.max_length,
        )
    seen = tokens.attention_mask if self._family.masked else None
    with torch.no_grad():
      out = model(tokens.input_ids, seen).last_hidden_state.float().numpy()
    if not self._family.masked:
      return list(out)
    lengths = tokens.attention_mask.sum(1).tolist()
    return [row[:n] for row, n in zip(out, lengths, strict=True)]

  @functools.cached_property
  def _loaded(self) -> tuple[Any, Any]:
    """Tokenizer and network, in the type its weights are stored in."""
    try:
      import torch  # noqa: F401 (says here, not deep inside, that it lacks)
      import transformers
    except ImportError:
      raise ValueError(
        f"prompts new to this model need transformers and torch to embed them "
        f"({self._encoder}); pip install 'dollar_jax[torch]'"
      ) from None
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      self._tokenizer, local_files_only=True
    )
    model = getattr(transformers, self.kind).from_pretrained(
      self._encoder, local_files_only=True, use_safetensors=True, dtype="auto"
    )
    return tokenizer, model.eval()

  def _file(self, prompt: str) -> Path:
    name = hashlib.sha256(prompt.encode()).hexdigest()
    return self._cache / f"{name}.npy"

  def _fingerprint(self) -> str:
    """A name for these very files: where they are, how large and how old."""
    files = []
    for part in (self._encoder, self._tokenizer):
      for file in sorted(part.rglob("*")):
        if file.is_file():
          stat = file.stat()
          files.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    described = [self.kind, dataclasses.asdict(self._family), files]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _tidy(prompt: str) -> str:
  """What Wan's pipeline makes of a prompt before it is cut into tokens."""
  try:
    import ftfy

    prompt = ftfy.fix_text(prompt)
  except ImportError:  # diffusers goes without it, too
    pass
  prompt = html.unescape(html.unescape(prompt))
  return re.sub(r"\s+", " ", prompt).strip()


def _write(file: Path, words: np.ndarray) -> None:
  """Writes whole or not at all: others may read, or write the same."""
  with tempfile.NamedTemporaryFile(
    dir=file.parent, suffix=".part", delete=False
  ) as handle:
    try:
      np.save(handle, words)
      handle.close()
      os.replace(handle.name, file)
    except BaseException:
      os.unlink(handle.name)
      raise
