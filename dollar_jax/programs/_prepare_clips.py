"""Clips and captions on their way into the shards of a set."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dollar_jax.data.clips import ClipForm, cut_clips
from dollar_jax.data.decoding import decode_in_order
from dollar_jax.data.sources import Skipped, Source
from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class ClipMaker:
  """Makes the examples of videos.

  Attributes:
    sources: in order.
    form: of their clips.
    codec: makes latents of them.
    text_encoder: embeds captions.
    batch_size: clips encoded at once.
    threads: files decoded at once.
  """

  sources: Sequence[Source]
  form: ClipForm
  codec: Any
  text_encoder: TextEncoder
  batch_size: int
  threads: int

  def __len__(self) -> int:
    return len(self.sources)

  def examples(
    self, rows: range, notes: dict[str, Any], done: Callable[[int], Any]
  ) -> Iterator[dict[str, Any]]:
    """The examples of some sources.

    Args:
      rows: which.
      notes: filled with `clips` (how many by file name), `skipped` and
        `squared_error` (the sum over the clips of a linear codec's).
      done: called with 1 whenever a source is done.
    """
    some = [self.sources[i] for i in rows]
    texts, reasons = embed(self.text_encoder, [s.text for s in some])
    clips = {s.file_name: 0 for s in some}
    skipped = [
      Skipped(s.file_name, reason)
      for s, reason in zip(some, reasons, strict=True)
      if reason
    ]
    done(len(skipped))
    known = {
      s.file_name: text
      for s, text, reason in zip(some, texts, reasons, strict=True)
      if not reason
    }
    errors, waiting, begun = [], [], []
    todo = [s for s in some if s.file_name in known]
    cuts = decode_in_order(
      todo, lambda source: cut_clips(source.path, self.form), self.threads
    )
    for source, item in cuts:
      if isinstance(item, np.ndarray):
        clips[source.file_name] += 1
        waiting.append((source, item))
        if len(waiting) == self.batch_size:
          # this batch is encoded while the one before is written
          begun.append(self._begin(waiting))
          waiting = []
          if len(begun) > 1:
            yield from _finished(begun.pop(0), known, errors)
        continue
      done(1)
      if item is not None:
        taken = clips[source.file_name]
        skipped.append(Skipped(source.file_name, str(item), taken))
    if waiting:
      begun.append(self._begin(waiting))
    for batch in begun:
      yield from _finished(batch, known, errors)
    notes["clips"] = clips
    notes["skipped"] = [dataclasses.asdict(s) for s in skipped]
    notes["squared_error"] = float(sum(errors))

  def _begin(self, clips: list[tuple[Source, np.ndarray]]) -> "_Batch":
    # one shape, one compilation
    fill = [clips[-1]] * (self.batch_size - len(clips))
    frames = np.stack([clip for _, clip in clips + fill])
    if isinstance(self.codec, LinearVAE):
      found = _encode_patches(self.codec, self.codec.patchify(frames))
    else:
      found = _encode(self.codec, frames), None
    return _Batch([source for source, _ in clips], *found)


class _Batch(NamedTuple):
  """Clips that are being encoded; the arrays may have more rows than they.

  Attributes:
    sources: of the clips.
    latents: of each.
    errors: squared error of each, if known.
  """

  sources: list[Source]
  latents: Array
  errors: Array | None


def _finished(
  batch: _Batch,
  known: dict[str, tuple[np.ndarray, np.ndarray]],
  errors: list[float],
) -> Iterator[dict[str, Any]]:
  """The examples of a batch, once it is encoded."""
  if batch.errors is not None:
    found = np.asarray(batch.errors, np.float64)
    errors += found[: len(batch.sources)].tolist()
  rows = zip(batch.sources, np.asarray(batch.latents, np.float32), strict=False)
  for source, latent in rows:
    text, mask = known[source.file_name]
    yield {
      "latents": latent,
      "text": text,
      "text_mask": mask,
      "prompt": source.text,
    }


def embed(
  encoder: TextEncoder, prompts: Sequence[str]
) -> tuple[list[tuple[np.ndarray, np.ndarray] | None], list[str]]:
  """Embeds what an encoder can embed.

  Returns:
    ((text [S, D], mask [S]) of each prompt, or None; why not, or "").
  """
  try:
    text, mask = encoder.encode(list(prompts))
    return list(zip(text, mask, strict=True)), [""] * len(prompts)
  except ValueError as error:
    if len(prompts) == 1:
      return [None], [str(error)]
  found = [embed(encoder, [prompt]) for prompt in prompts]
  return [text for [text], _ in found], [why for _, [why] in found]


def fit_codec(
  sources: Sequence[Source],
  form: ClipForm,
  count: int,
  channels: int,
  threads: int,
) -> LinearVAE:
  """Fits the linear codec to clips from sources spread over the list.

  Raises:
    ValueError: if there is no clip, or clips do not divide into patches.
  """
  at = np.linspace(0, len(sources) - 1, min(count, len(sources)))
  chosen = [sources[round(i)] for i in at]
  each = -(-count // len(chosen))

  def cut(source: Source) -> Iterator[np.ndarray]:
    for number, clip in enumerate(cut_clips(source.path, form), 1):
      yield clip
      if number == each:
        return

  def clips() -> Iterable[np.ndarray]:
    for _, item in decode_in_order(chosen, cut, threads):
      if isinstance(item, np.ndarray):
        yield item

  return LinearVAE.fit_many(clips(), channels=channels)


def word_encoder(captions: Sequence[str], dim: int) -> WordEncoder:
  """The encoder of the words that captions consist of."""
  words = {word for text in captions for word in text.lower().split()}
  longest = max(len(text.split()) for text in captions)
  return WordEncoder.create(words, dim, longest)


@jax.jit
def _encode(codec: Any, frames: Array) -> Array:
  return codec.encode(frames)


@jax.jit
def _encode_patches(codec: LinearVAE, patches: Array) -> tuple[Array, Array]:
  """One latent frame after another: what it takes stays in a CPU's cache."""
  frames = patches.reshape(-1, 1, *patches.shape[2:])
  latents, errors = jax.lax.map(codec.encode_patches, frames)
  errors = errors.reshape(patches.shape[:2]).mean(-1)
  return latents.reshape(*patches.shape[:-1], -1), errors
