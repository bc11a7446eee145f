"""The data of a run: opened where prepared, made where embedded."""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dollar_jax.data import latents, moving_digits, shards
from dollar_jax.data.latents import Example
from dollar_jax.data.mixing import parse_sources
from dollar_jax.interop import parts
from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.train.config import DataConfig, TrainConfig
from dollar_jax.typing import Array

EMBEDDED = "moving_digits"
"""Name of the data set that comes with the package."""

_CODEC_PATCH = (4, 8, 8)
_TEXT_DIM = 64
_CHUNK = 256


class Codec(Protocol):
  """Pixels to latents and back, as `models.linear_vae.LinearVAE`."""

  def encode(self, frames: Array) -> Array:
    """uint8 [B, F, H, W, 3] → float32 [B, T, h, w, C]."""

  def decode(self, latents: Array) -> Array:
    """float32 [B, T, h, w, C] → uint8 [B, F, H, W, 3]."""


def digits_codec(config: DataConfig) -> LinearVAE:
  """Fits the linear codec on training clips."""
  clips = moving_digits.make_clips("train", min(config.clips, 2000))
  return LinearVAE.fit(
    clips.frames, _CODEC_PATCH, config.channels, config.whitening
  )


def digits_clip_shape() -> tuple[int, int, int]:
  """Frames, height and width of the embedded clips."""
  return moving_digits.FRAMES, moving_digits.SIZE, moving_digits.SIZE


def digits_text_encoder() -> WordEncoder:
  """The word-level encoder of the 40 captions."""
  captions = moving_digits.all_captions()
  words = sorted({word for text in captions for word in text.split()})
  longest = max(len(text.split()) for text in captions)
  return WordEncoder.create(words, _TEXT_DIM, longest)


def open_data(
  config: DataConfig, codec: Codec, encoder: TextEncoder, folder: str
) -> Any:
  """Opens a run's latent set; the embedded one is made in `folder` first.

  Args:
    config: which data.
    codec: encodes clips of the embedded set.
    encoder: encodes its captions.
    folder: where the embedded set's latents are kept.

  Returns:
    Random access to dicts of `latents` [T, H, W, C], `text` [S, D],
    `text_mask` [S] and `prompt`.

  Raises:
    ValueError: if the source is neither embedded nor a prepared folder.
  """
  if config.source != EMBEDDED:
    return latents.read(config.source)
  name = f"{EMBEDDED}-{config.clips}-{_fingerprint(codec, encoder)}"
  folder = str(epath.Path(folder) / name)
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself
    builder = moving_digits.MovingDigits(
      data_dir=folder, clips=config.clips, file_format="array_record"
    )
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")
    shape = source[0]["frames"].shape
    text = encoder.encode([""])[0]
    latents.write(
      folder,
      _encode(source, codec, encoder),
      jax.eval_shape(
        codec.encode, jax.ShapeDtypeStruct((1, *shape), np.uint8)
      ).shape[1:],
      text.shape[1:],
    )
  return latents.read(f"{folder}/latents/{latents.Latents.VERSION}")


@dataclasses.dataclass(frozen=True)
class LatentSet:
  """A set that a run draws from.

  Attributes:
    name: its folder, or `EMBEDDED`.
    source: see `open_data`.
    weight: its share in what is drawn, in the unit of the other sets'.
  """

  name: str
  source: Any
  weight: float


def open_sets(
  config: TrainConfig,
  codec: Codec,
  encoder: TextEncoder,
  shape: tuple[int, ...],
  folder: str,
) -> list[LatentSet]:
  """Opens the sets of a run, each fit for it.

  Args:
    config: the run.
    codec: the model's.
    encoder: the model's.
    shape: [T, H, W, C] of the model's videos, see `with_latents`.
    folder: see `open_data`.

  Raises:
    ValueError: if `data.source` cannot be understood, or as `open_data`,
      `check_made_for` and `with_latents` do.
  """
  sources = parse_sources(config.data.source)
  if len(sources) > 1 and EMBEDDED in sources:
    raise ValueError(
      f"config.data.source={config.data.source} mixes {EMBEDDED} with folders; "
      "give it alone"
    )
  sets = []
  for name, weight in sources.items():
    data = dataclasses.replace(config.data, source=name)
    source = open_data(data, codec, encoder, folder)
    check_made_for(name, codec, encoder)
    one = dataclasses.replace(config, data=data)
    source = with_latents(source, one, shape)
    sets.append(LatentSet(name, source, weight or len(source)))
  return sets


def own_parts(
  config: DataConfig,
) -> tuple[LinearVAE, WordEncoder, tuple[int, int, int], float] | None:
  """What a set, the first of several, was made with, if not with a model.

  Returns:
    Its codec, its text encoder, frames, height and width of its clips, and
    their frames a second; None for other sets.

  Raises:
    ValueError: if they are damaged, or there is no such set.
  """
  source = next(iter(parse_sources(config.source)))
  if source == EMBEDDED:
    return None
  if not epath.Path(source).is_dir():
    latents.read(source)  # says how to make one
  found = parts.load_parts(source)
  made = shards.read_metadata(source)
  if found is None or "video_size" not in made:
    return None
  return *found, tuple(made["video_size"]), made["fps"]


def check_made_for(source: str, codec: Codec, encoder: TextEncoder) -> None:
  """Checks that a set was prepared with a model's codec and text encoder.

  Args:
    source: the set's folder; of one that records nothing nothing is checked.
    codec: the model's.
    encoder: the model's.

  Raises:
    ValueError: if it was prepared with others.
  """
  if source != EMBEDDED:
    made = shards.read_metadata(source)
    mine = {"codec": codec, "text_encoder": encoder}
    parts.check_made_with(source, made, mine)


@dataclasses.dataclass(frozen=True)
class _Blank:
  """A set of prompts, with zeros where training looks for latents."""

  source: Any
  shape: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {**self.source[index], "latents": np.zeros(self.shape, np.float32)}


def with_latents(
  source: Any, config: TrainConfig, shape: tuple[int, ...]
) -> Any:
  """A set that has latents: its own, or none that would be looked at.

  Args:
    source: of `open_data`.
    config: the run.
    shape: [T, H, W, C] of the model's videos, taken for a set of prompts.

  Raises:
    ValueError: if the run needs videos, and the set has prompts alone.
  """
  if "latents" in source[0]:
    return source
  distill = config.distill
  for needs, entry in (
    (config.task == "teacher", "task='teacher'"),
    (distill.inputs == "data", "distill.inputs='data'"),
    (distill.cd_weight > 0, f"distill.cd_weight={distill.cd_weight}"),
    (
      distill.reward_weight > 0 and config.reward.real_labels > 0,
      f"reward.real_labels={config.reward.real_labels}",
    ),
    (
      config.guard.every > 0 and bool(config.guard.features),
      f"guard.features={config.guard.features!r}",
    ),
  ):
    if needs:
      raise ValueError(
        f"data set {config.data.source} has prompts and no latents, but "
        f"config.{entry} needs them; prepare it with --synthesize, or from "
        "videos"
      )
  return _Blank(source, shape)


def _fingerprint(codec: Codec, encoder: TextEncoder) -> str:
  """Tells sets apart that another codec or text encoder has made."""
  embedded = encoder.encode(moving_digits.all_captions())
  arrays = [*jax.tree.leaves(codec), *embedded]
  data = b"".join(np.asarray(array).tobytes() for array in arrays)
  return hashlib.sha256(data).hexdigest()[:8]


def _encode(
  source: Any, codec: Codec, encoder: TextEncoder
) -> Iterator[Example]:
  encode = jax.jit(codec.encode)
  for start in range(0, len(source), _CHUNK):
    rows = [source[i] for i in range(start, min(start + _CHUNK, len(source)))]
    prompts = [row["prompt"].decode() for row in rows]
    encoded = np.asarray(encode(np.stack([row["frames"] for row in rows])))
    text, mask = encoder.encode(prompts)
    for fields in zip(encoded, text, mask, prompts, strict=True):
      yield Example(*fields)
