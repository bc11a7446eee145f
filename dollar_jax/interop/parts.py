"""A codec and a text encoder without the network between them.

They make a data set, lie in its folder where they were made for it, and are
known again by what they hold when a model is to train on it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dollar_jax.interop import diffusers
from dollar_jax.interop.autoencoder_keymaps import AUTOENCODERS
from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.folders import (
  check_source,
  read_json,
  replace_folder,
  write_json,
)
from dollar_jax.interop.networks import WEIGHTS
from dollar_jax.interop.pipeline import EMBEDDED
from dollar_jax.interop.published import published_recipe
from dollar_jax.interop.recipe import Recipe
from dollar_jax.interop.t5 import T5Encoder
from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder
from dollar_jax.interop.weights import read_weights, write_weights
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.video_vae import VideoVAE

CODEC = "vae"
TEXT_ENCODER = "text_encoder"

_OWN = {
  CODEC: (LinearVAE, WEIGHTS),
  TEXT_ENCODER: (WordEncoder, diffusers.TEXT_WEIGHTS),
}


def save_parts(
  folder: Path, codec: LinearVAE, text_encoder: WordEncoder
) -> None:
  """Writes both into a set's folder, each whole or not at all."""
  for name, part in ((CODEC, codec), (TEXT_ENCODER, text_encoder)):
    with replace_folder(folder / name) as target:
      fields = {"_class_name": type(part).__name__, **part.config}
      write_json(target / "config.json", fields)
      write_weights(target, _OWN[name][1], part.arrays)


def load_parts(folder: str | Path) -> tuple[LinearVAE, WordEncoder] | None:
  """Reads what `save_parts` wrote; None where a set has no parts of its own.

  Raises:
    ValueError: if they are damaged.
  """
  found = []
  for name, (kind, stem) in _OWN.items():
    part = Path(folder) / name
    if not part.is_dir():
      return None
    config = read_json(part / "config.json")
    stored = read_weights(part, stem)
    arrays = {key: np.asarray(tensor) for key, tensor in stored.items()}
    try:
      found.append(kind.from_arrays(config, arrays))
    except (TypeError, KeyError, ValueError) as error:
      raise ValueError(
        f"{part} does not hold a whole {kind.__name__}: {error}"
      ) from None
  return tuple(found)


def open_parts(
  name: str,
) -> tuple[LinearVAE | VideoVAE | None, TextEncoder | None, Recipe]:
  """Codec, text encoder and recipe of a model; its network is not read.

  Args:
    name: "embedded", a model folder, a finished run, or a name in the Hugging
      Face cache.

  Raises:
    ValueError: if it is none of these, or damaged.
  """
  if name == "embedded":
    path = EMBEDDED
  else:
    path = on_disk(name)
    finished = (path / "model" / "model_index.json").is_file()
    path = check_source(path / "model" if finished else path)
  codec = encoder = None
  if (path / CODEC).is_dir():
    codec = diffusers.load_codec(path)
  if (path / TEXT_ENCODER).is_dir():
    encoder = diffusers.load_text_encoder(path)
  stored = diffusers.load_recipe(path)
  if stored:
    return codec, encoder, Recipe.from_json(stored)
  config = diffusers.load_denoiser(path).config
  return codec, encoder, published_recipe(config)


def identity(part: Any) -> dict[str, str]:
  """`name` and `fingerprint` of a codec or text encoder.

  Equal for equal weights, wherever they lie.
  """
  if isinstance(part, T5Encoder):
    return {"name": part.kind, "fingerprint": part.content}
  name, described = type(part).__name__, []
  if isinstance(part, VideoVAE):
    form = type(part.size)
    [name] = [key for key, a in AUTOENCODERS.items() if a.config is form]
    described = [repr(part.size)]
    leaves = jax.tree.leaves(part.params)
  else:
    arrays = part.arrays
    described = [json.dumps(part.config, sort_keys=True)]
    leaves = [arrays[key] for key in sorted(arrays)]
  digest = hashlib.sha256("".join(described).encode())
  for leaf in leaves:
    digest.update(np.ascontiguousarray(np.asarray(leaf, np.float32)))
  return {"name": name, "fingerprint": digest.hexdigest()[:16]}


def scale(codec: LinearVAE | VideoVAE) -> dict[str, list[float]]:
  """By what each latent channel was moved, `mean`, and divided, `deviation`."""
  if isinstance(codec, LinearVAE):
    deviation = np.asarray(codec.scale, np.float64)
    mean = np.zeros_like(deviation)
  else:
    mean, deviation = (np.asarray(x) for x in codec.size.statistics)
  return {"mean": mean.tolist(), "deviation": deviation.tolist()}


def clip_size(
  codec: LinearVAE | VideoVAE, latent_shape: Sequence[int]
) -> tuple[int, int, int]:
  """Frames, height and width of what latents [T, H, W, C] decode to."""
  time, height, width = latent_shape[:3]
  if isinstance(codec, LinearVAE):
    i, j, k = codec.patch
    return time * i, height * j, width * k
  side, step = codec.size.pixels_per_latent, codec.size.frames_per_latent
  frames = (time - 1) * step + 1
  if not codec.size.codes(frames):  # CogVideoX's even numbers of latents
    frames = time * step
  return frames, height * side, width * side


def check_made_with(
  source: str, recorded: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
  """Checks that a data set was made with a model's codec and text encoder.

  Args:
    source: the set's folder.
    recorded: the `identity` of each, by the keys of `parts`; what is absent is
      not checked.
    parts: the model's "codec" and "text_encoder".

  Raises:
    ValueError: if one is another.
  """
  for key, part in parts.items():
    made, mine = recorded.get(key), identity(part) if part else None
    if made and mine and made != mine:
      what = key.replace("_", " ")
      raise ValueError(
        f"data set {source} was prepared with {what} {_called(made)}, but the "
        f"model has {_called(mine)}; prepare the data with this model"
      )


def _called(part: Mapping[str, str]) -> str:
  return f"{part['name']} ({part['fingerprint'][:8]})"
