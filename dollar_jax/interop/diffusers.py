"""Models as diffusers pipeline folders: config.json and safetensors.

model_index.json       the parts that diffusers opens by itself
transformer/           the network; its weights may be Orbax checkpoints
transformer_2/         the expert for less noisy times, where there are two
scheduler/             noise process, prediction type, time shift; of a
                       student, the few steps that it takes
vae/, text_encoder/    diffusers' or our own codec and text encoder, the latter
                       under our class names; a T5 is copied as it was, with
                       its tokenizer/
pytorch_lora_weights.safetensors   what a student has learnt, as adapters
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
from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.folders import (
  check_source,
  check_target,
  read_json,
  replace_folder,
  write_json,
)
from dollar_jax.interop.keymaps import TRANSFORMERS
from dollar_jax.interop.lora_weights import write_adapters
from dollar_jax.interop.networks import (
  WEIGHTS,
  form_of,
  known_class,
  open_weights,
  read_config,
  read_form,
  template,
)
from dollar_jax.interop.schedulers import (
  is_few_steps,
  scheduler_from_json,
  scheduler_to_json,
  student_scheduler_to_json,
)
from dollar_jax.interop.t5 import T5Encoder
from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder
from dollar_jax.interop.weights import read_weights, write_weights
from dollar_jax.models.denoiser import EXPERTS, Denoiser
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.video_vae import NETWORKS, VideoVAE
from dollar_jax.typing import Params

DIFFUSERS_VERSION = "0.42.1"
"""The release whose folder layout and field names are written."""

TEXT_WEIGHTS = "model"
TRAINED_ON = "teacher_scheduler"
"""Entry of a student's recipe: the config of its teacher's scheduler."""

BOUNDARY = "boundary_ratio"
"""Entry of a model_index.json: the time between two experts."""

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
    stem: that file's name without its ending.
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
  adapters: Params | None = None,
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
    dtype: stores the network as one of `convert.DTYPES`; None keeps each
      parameter's type.
    adapters: what of `params` was trained as adapters; they are written
      beside it as well, for `load_lora_weights` of diffusers.

  Raises:
    ValueError: if a part has no place in such a folder, or `path` holds
      something that is not a model.
    OSError: if the disk is full or the place not writable.
  """
  path = on_disk(path).resolve()
  check_target(path)
  try:
    json.dumps(recipe, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"the recipe cannot be written as JSON ({error}); give plain numbers, "
      "strings, lists and dicts"
    ) from None
  architecture = form_of(denoiser.module)
  recipe, scheduler = _scheduling(denoiser, recipe)
  networks = {"transformer": params} if denoiser.boundary is None else params
  parts = [
    _network_part(name, denoiser, tree, dtype)
    for name, tree in networks.items()
  ]
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
      **architecture.extras(denoiser.config),
    }
    if denoiser.boundary is not None:
      index[BOUNDARY] = denoiser.boundary
    for part in parts:
      if part.kind in TRANSFORMERS or part.kind in AUTOENCODERS:
        index[part.name] = ["diffusers", part.kind]
      target = folder / part.name
      fields = {"_class_name": part.kind, **part.config}
      write_json(target / "config.json", fields)
      write_weights(target, part.stem, part.arrays)
    if adapters is not None:
      write_adapters(folder, denoiser, adapters)
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
    path: the folder, or the name of a model in the Hugging Face cache.
    param_dtype: casts the parameters, "float32" for masters to train; None
      keeps the stored types.
    host: leaves the parameters as numpy arrays, for the caller to place.
    **model_options: config fields that no folder holds: `dtype` (compute),
      `remat`, `scan`, `attention`, `context`.

  Returns:
    (denoiser, params).

  Raises:
    ValueError: if the folder or a file is missing, damaged, pickled, of an
      unknown class, or the weights do not fit the config.
  """
  path = check_source(path)
  denoiser = load_denoiser(path, **model_options)
  if denoiser.boundary is None:
    params = _read_params(_network_folder(path), denoiser.module)
  else:
    params = {n: _read_params(path / n, denoiser.module) for n in EXPERTS}
  params = convert.cast(params, param_dtype)
  if not host:
    params = jax.tree.map(jnp.array, params)
  return denoiser, params


def load_denoiser(path: str | os.PathLike, **model_options: Any) -> Denoiser:
  """Reads what `load` does, without the weights.

  Raises:
    ValueError: as `load`.
  """
  path = check_source(path)
  folder = _network_folder(path)
  architecture = read_form(folder)
  process, prediction, shift = FlowProcess(), "flow", 1.0
  if folder != path:
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file)
    if is_few_steps(scheduler):
      scheduler = load_recipe(path).get(TRAINED_ON, scheduler)
    process, prediction, shift = scheduler_from_json(scheduler, file)
  config = read_config(folder, **model_options)
  boundary = None if folder == path else _boundary(path)
  if boundary is not None:
    other = read_config(path / EXPERTS[1], **model_options)
    if other != config:
      raise ValueError(
        f"{path} has two transformers of different sizes; copy it again"
      )
  module = architecture.module(config)
  return Denoiser(module, process, prediction, shift, boundary)


def load_codec(path: str | os.PathLike) -> LinearVAE | VideoVAE:
  """Reads the codec in `path`/vae; weights of a network become float32.

  Raises:
    ValueError: if there is none, or it is damaged or of an unknown class.
  """
  folder = check_source(path) / "vae"
  raw = read_json(folder / "config.json") if folder.is_dir() else {}
  if raw.get("_class_name") not in AUTOENCODERS:
    known = CODECS | dict.fromkeys(AUTOENCODERS)
    return _load_part(path, "vae", known, WEIGHTS)
  form = AUTOENCODERS[raw["_class_name"]]
  weights = read_weights(folder, WEIGHTS)
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
  folder = check_source(path) / "text_encoder"
  if folder.is_dir() and "architectures" in read_json(folder / "config.json"):
    return T5Encoder(folder.parent)
  return _load_part(path, "text_encoder", TEXT_ENCODERS, TEXT_WEIGHTS)


def load_recipe(path: str | os.PathLike) -> dict[str, Any]:
  """Reads `path`/recipe.json; a folder without one has an empty recipe.

  Raises:
    ValueError: if the folder is missing or the file is not JSON.
  """
  file = check_source(path) / "recipe.json"
  return read_json(file) if file.exists() else {}


def _network_folder(path: Path) -> Path:
  """Where the transformer of a pipeline, or of a transformer folder, lies."""
  folder = path / "transformer"
  return folder if folder.is_dir() else path


def _network_part(
  name: str, denoiser: Denoiser, params: Params, dtype: str | None
) -> Part:
  architecture = form_of(denoiser.module)
  tensors = convert.tree_to_torch(
    params, architecture.keymap(denoiser.config), template(denoiser.module)
  )
  tensors = {key: convert.narrow(key, x, dtype) for key, x in tensors.items()}
  config = architecture.to_json(denoiser.config)
  config["_diffusers_version"] = DIFFUSERS_VERSION
  return Part(name, architecture.name, config, tensors, WEIGHTS)


def _read_params(folder: Path, module: nn.Module) -> Params:
  keymap = form_of(module).keymap(module.config)
  try:
    return convert.torch_to_tree(open_weights(folder), keymap, template(module))
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from None


def _boundary(path: Path) -> float | None:
  """The time between the experts of a pipeline; None where it has one."""
  file = path / "model_index.json"
  boundary = read_json(file).get(BOUNDARY) if file.exists() else None
  if boundary is None:
    return None
  if type(boundary) is not float or not 0.0 < boundary < 1.0:
    raise ValueError(
      f"{file} has {BOUNDARY} {boundary!r}; it must lie between 0 and 1"
    )
  return boundary


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


def _load_part(
  path: str | os.PathLike, name: str, known: dict[str, type], stem: str
) -> Any:
  folder = check_source(path) / name
  if not folder.is_dir():
    raise ValueError(f"{path} has no {name}/; save the model with one")
  config = read_json(folder / "config.json")
  kind = known_class(config, known, name, folder)
  stored = read_weights(folder, stem)
  arrays = {key: np.asarray(tensor) for key, tensor in stored.items()}
  try:
    return kind.from_arrays(config, arrays)
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(
      f"{folder} does not hold a whole {kind.__name__}: {error}"
    ) from None
