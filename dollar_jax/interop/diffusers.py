"""Models as diffusers pipeline folders: config.json and safetensors.

model_index.json       the parts that diffusers opens by itself
transformer/           the network
scheduler/             noise process, prediction type, time shift; of a
                       student, the few steps that it takes
vae/, text_encoder/    diffusers' or our own codec and text encoder, the latter
                       under our class names; a T5 is copied as it was, with
                       its tokenizer/
recipe.json            how the model was made and how to sample it
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from dollar_jax.diffusion.process import FlowProcess
from dollar_jax.interop import convert
from dollar_jax.interop.autoencoder_keymaps import AUTOENCODERS
from dollar_jax.interop.folders import read_json, replace_folder, write_json
from dollar_jax.interop.keymaps import TRANSFORMERS, Architecture
from dollar_jax.interop.schedulers import (
  is_few_steps,
  scheduler_from_json,
  scheduler_to_json,
  student_scheduler_to_json,
)
from dollar_jax.interop.t5 import T5Encoder
from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.video_vae import NETWORKS, VideoVAE
from dollar_jax.typing import Params

DIFFUSERS_VERSION = "0.42.1"
"""The release whose folder layout and field names are written."""

WEIGHTS = "diffusion_pytorch_model"
TEXT_WEIGHTS = "model"
TRAINED_ON = "teacher_scheduler"
"""Entry of a student's recipe: the config of its teacher's scheduler."""

DTYPES = ("float32", "float16", "bfloat16")
CODECS = {"LinearVAE": LinearVAE}
TEXT_ENCODERS = {"WordEncoder": WordEncoder}


@dataclasses.dataclass(frozen=True)
class Part:
  """One subfolder of a pipeline folder.

  Attributes:
    name: of the folder.
    kind: `_class_name` in its config.json.
    config: the rest of that.
    arrays: what the safetensors file holds.
    stem: that file's name.
  """

  name: str
  kind: str
  config: dict[str, Any]
  arrays: Mapping[str, np.ndarray]
  stem: str


def save(
  path: str | os.PathLike,
  denoiser: Denoiser,
  params: Params,
  codec: LinearVAE | VideoVAE | None = None,
  text_encoder: TextEncoder | None = None,
  recipe: Mapping[str, Any] | None = None,
  *,
  dtype: str | None = None,
) -> None:
  """Writes a pipeline folder, whole or not at all.

  The folder is made beside `path` and then renamed, so that an earlier model
  there survives a full disk. A model folder at `path` is replaced.

  Args:
    path: the folder.
    denoiser: network, noise process, prediction type and time shift.
    params: the network's parameters.
    codec: goes to vae/.
    text_encoder: goes to text_encoder/ (and tokenizer/).
    recipe: anything JSON can hold: grid, guidance, latent shape, fps, …; with
      a `grid` the folder's scheduler takes a student's steps, if diffusers has
      one for them, and the process it was trained on goes into the recipe.
    dtype: stores the network as one of `DTYPES`; None keeps each parameter's
      type.

  Raises:
    ValueError: if a part has no place in such a folder, or `path` holds
      something that is not a model.
    OSError: if the disk is full or the place not writable.
  """
  path = Path(path).resolve()
  _check_target(path)
  try:
    json.dumps(recipe, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"the recipe cannot be written as JSON ({error}); give plain numbers, "
      "strings, lists and dicts"
    ) from None
  architecture = _architecture(denoiser.module)
  tensors = convert.tree_to_torch(
    params, architecture.keymap(denoiser.config), template(denoiser.module)
  )
  tensors = {key: _store(key, x, dtype) for key, x in tensors.items()}
  recipe, scheduler = _scheduling(denoiser, recipe)
  config = architecture.to_json(denoiser.config)
  config["_diffusers_version"] = DIFFUSERS_VERSION
  parts = [Part("transformer", architecture.name, config, tensors, WEIGHTS)]
  if codec is not None:
    parts.append(_codec_part(codec))
  if text_encoder is not None and not isinstance(text_encoder, T5Encoder):
    parts.append(_plain_part("text_encoder", text_encoder, TEXT_ENCODERS))

  with replace_folder(path) as folder:
    # a part of no diffusers class has no entry: its user passes None, or his
    # own, for it
    index = {
      "_class_name": architecture.pipeline,
      "_diffusers_version": DIFFUSERS_VERSION,
      "scheduler": ["diffusers", scheduler["_class_name"]],
      **{name: [None, None] for name in architecture.parts},
    }
    for part in parts:
      if part.kind in TRANSFORMERS or part.kind in AUTOENCODERS:
        index[part.name] = ["diffusers", part.kind]
      target = folder / part.name
      fields = {"_class_name": part.kind, **part.config}
      write_json(target / "config.json", fields)
      file = target / f"{part.stem}.safetensors"
      convert.write_weights(file, part.arrays)
    if isinstance(text_encoder, T5Encoder):
      index |= text_encoder.copy_to(folder)
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if recipe is not None:
      write_json(folder / "recipe.json", recipe)


def load(
  path: str | os.PathLike,
  *,
  param_dtype: str | None = None,
  host: bool = False,
  **model_options: Any,
) -> tuple[Denoiser, Params]:
  """Reads the network of a pipeline folder, or of a transformer folder.

  A transformer folder has no scheduler beside it: the denoiser then has the
  flow process and no time shift.

  Args:
    path: the folder.
    param_dtype: casts the parameters, "float32" for masters to train; None
      keeps the stored types.
    host: leaves the parameters as numpy arrays, for the caller to place.
    **model_options: config fields that no folder holds: `dtype` (compute),
      `remat`, `scan`.

  Returns:
    (denoiser, params).

  Raises:
    ValueError: if the folder or a file is missing, damaged, pickled, of an
      unknown class, or the weights do not fit the config.
  """
  path = _check_source(path)
  alone = not (path / "transformer").is_dir()
  folder = path if alone else path / "transformer"
  raw = read_json(folder / "config.json")
  architecture = _known(raw, TRANSFORMERS, "transformer", folder)
  process, prediction, shift = FlowProcess(), "flow", 1.0
  if not alone:
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file)
    if is_few_steps(scheduler):
      scheduler = load_recipe(path).get(TRAINED_ON, scheduler)
    process, prediction, shift = scheduler_from_json(scheduler, file)
  weights = convert.read_weights(folder, WEIGHTS)
  weights = {k: w for k, w in weights.items() if architecture.is_read(k)}
  try:
    config = architecture.from_json(raw, **model_options)
    module = architecture.module(config)
    params = convert.torch_to_tree(
      weights, architecture.keymap(config), template(module)
    )
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from None
  params = convert.cast(params, param_dtype)
  if not host:
    params = jax.tree.map(jnp.array, params)
  return Denoiser(module, process, prediction, shift), params


def load_codec(path: str | os.PathLike) -> LinearVAE | VideoVAE:
  """Reads the codec in `path`/vae; weights of a network become float32.

  Raises:
    ValueError: if there is none, or it is damaged or of an unknown class.
  """
  folder = _check_source(path) / "vae"
  raw = read_json(folder / "config.json") if folder.is_dir() else {}
  if raw.get("_class_name") not in AUTOENCODERS:
    known = CODECS | dict.fromkeys(AUTOENCODERS)
    return _load_part(path, "vae", known, WEIGHTS)
  form = AUTOENCODERS[raw["_class_name"]]
  weights = convert.read_weights(folder, WEIGHTS)
  try:
    size = form.from_json(raw)
    shapes = NETWORKS[form.config].shapes(size)
    params = convert.torch_to_tree(weights, form.keymap(size), shapes)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from None
  return VideoVAE(convert.cast(params, "float32"), size)


def load_text_encoder(path: str | os.PathLike) -> TextEncoder:
  """Reads the text encoder in `path`/text_encoder.

  Raises:
    ValueError: if there is none, or it is damaged or of an unknown class.
  """
  folder = _check_source(path) / "text_encoder"
  if folder.is_dir() and "architectures" in read_json(folder / "config.json"):
    return T5Encoder(path)
  return _load_part(path, "text_encoder", TEXT_ENCODERS, TEXT_WEIGHTS)


def load_recipe(path: str | os.PathLike) -> dict[str, Any]:
  """Reads `path`/recipe.json; a folder without one has an empty recipe.

  Raises:
    ValueError: if the folder is missing or the file is not JSON.
  """
  file = _check_source(path) / "recipe.json"
  return read_json(file) if file.exists() else {}


def _scheduling(
  denoiser: Denoiser, recipe: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
  """The recipe and the scheduler config of a folder."""
  version = {"_diffusers_version": DIFFUSERS_VERSION}
  trained_on = scheduler_to_json(denoiser) | version
  if recipe is None:
    return None, trained_on
  recipe = {k: v for k, v in recipe.items() if k != TRAINED_ON}
  if not recipe.get("grid"):
    return recipe, trained_on
  few_steps = student_scheduler_to_json(
    denoiser, recipe["grid"], recipe.get("fresh_noise", 1.0)
  )
  if few_steps is None:
    logging.info("no scheduler of diffusers takes this student's steps")
    return recipe, trained_on
  return recipe | {TRAINED_ON: trained_on}, few_steps | version


def _codec_part(codec: Any) -> Part:
  if not isinstance(codec, VideoVAE):
    return _plain_part("vae", codec, CODECS)
  for form in AUTOENCODERS.values():
    if form.config is type(codec.size):
      config = form.to_json(codec.size)
      config["_diffusers_version"] = DIFFUSERS_VERSION
      arrays = convert.tree_to_torch(codec.params, form.keymap(codec.size))
      return Part("vae", form.name, config, arrays, WEIGHTS)
  raise AssertionError(f"{type(codec.size).__name__} is in no table")


def _plain_part(name: str, part: Any, known: dict[str, type]) -> Part:
  """A part that knows its own config and arrays."""
  kind = type(part).__name__
  if kind not in known:
    raise ValueError(f"a {kind} cannot be saved; known are {sorted(known)}")
  stem = WEIGHTS if name == "vae" else TEXT_WEIGHTS
  return Part(name, kind, part.config, part.arrays, stem)


def _architecture(module: nn.Module) -> Architecture:
  for architecture in TRANSFORMERS.values():
    if type(module) is architecture.module:
      return architecture
  raise ValueError(
    f"a {type(module).__name__} has no diffusers twin; known are "
    f"{sorted(TRANSFORMERS)}"
  )


def template(module: nn.Module) -> Params:
  """Shapes of a transformer's parameters; computes nothing."""
  inputs = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in module.config.smallest_inputs.items()
  }
  variables = jax.eval_shape(module.init, jax.random.key(0), **inputs)
  return nn.meta.unbox(variables["params"])


def _store(key: str, array: np.ndarray, dtype: str | None) -> np.ndarray:
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}; use one of {DTYPES} or None")
  with np.errstate(over="ignore"):
    stored = convert.cast(array, dtype)
  lost = np.isfinite(array) & ~np.isfinite(stored)
  if np.any(lost):
    raise ValueError(
      f"{key} has values up to {np.abs(array[lost]).max():.3g}, too large for "
      f"{dtype}; store this model as bfloat16 or float32"
    )
  return stored


def _load_part(
  path: str | os.PathLike, name: str, known: dict[str, type], stem: str
) -> Any:
  folder = _check_source(path) / name
  if not folder.is_dir():
    raise ValueError(f"{path} has no {name}/; save the model with one")
  config = read_json(folder / "config.json")
  kind = _known(config, known, name, folder)
  stored = convert.read_weights(folder, stem)
  arrays = {key: np.asarray(tensor) for key, tensor in stored.items()}
  try:
    return kind.from_arrays(config, arrays)
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(
      f"{folder} does not hold a whole {kind.__name__}: {error}"
    ) from None


def _known(
  raw: dict[str, Any], known: dict[str, Any], part: str, folder: Path
) -> Any:
  name = raw.get("_class_name")
  if not isinstance(name, str) or name not in known:
    raise ValueError(
      f"{folder} holds a {part} of class {name!r}; known are {sorted(known)}"
    )
  return known[name]


def _check_source(path: str | os.PathLike) -> Path:
  path = Path(path)
  if path.suffix in convert.PICKLES and path.is_file():
    raise ValueError(
      f"{path} is a pickle, which can run any code and is not read; give a "
      "diffusers folder with safetensors weights"
    )
  if not path.is_dir():
    raise ValueError(f"{path} is not a folder; give a diffusers folder")
  pipeline = (path / "transformer").is_dir()
  if not pipeline and not (path / "config.json").is_file():
    raise ValueError(
      f"{path} has neither transformer/ nor config.json; give a diffusers "
      "pipeline or transformer folder"
    )
  return path


def _check_target(path: Path) -> None:
  if path.exists() and not path.is_dir():
    raise ValueError(f"{path} is a file; give a folder for the model")
  used = path.is_dir() and any(path.iterdir())
  if used and not (path / "model_index.json").is_file():
    raise ValueError(
      f"{path} holds other files than a model; give a new or empty folder"
    )
