"""The models of a run: what it starts from, what it has trained."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dollar_jax.data.moving_digits import FPS
from dollar_jax.interop import buckets
from dollar_jax.interop.folders import read_json
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.attention import Choice, choose
from dollar_jax.models.configs import CogVideoXConfig, WanConfig
from dollar_jax.models.denoiser import make_wan
from dollar_jax.parallel.mesh import platform_of
from dollar_jax.train import datasets
from dollar_jax.train.checkpoint import read_networks
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.loop import CONFIG
from dollar_jax.typing import Params

RECIPE = "recipe.json"
"""How the result is sampled, for whoever opens a run before it is finished."""

TEACHER_STEPS = 50
TEACHER_GUIDANCE = 1.6
"""How a teacher trained here is sampled, unless told otherwise."""


def open_model(name: str, scan: bool = False, host: bool = False) -> Pipeline:
  """Opens "embedded", a model folder, or a run's folder.

  A run that is finished has its model in `name/model`; of one that is not,
  the newest checkpoint's average is taken, and `scan` is as in that run. With
  `host` parameters stay numpy arrays, for training to place.

  Raises:
    ValueError: if it is none of these, or damaged.
  """
  folder = buckets.place(name)
  if (folder / "model" / "model_index.json").exists():
    return Pipeline.load(str(folder / "model"), scan, host)
  config_file = folder / CONFIG
  if not (folder / "checkpoints").is_dir() or not config_file.exists():
    return Pipeline.load(name, scan, host)
  config = run_config(name)
  base, networks = open_base(config), read_networks(name)
  state = networks if config.task == "teacher" else networks["student"]
  params = state["params"] if state["ema"] is None else state["ema"]
  recipe = Recipe.from_json(read_json(folder / RECIPE))
  if not host:
    params = jax.tree.map(jnp.asarray, params)
  return with_trained(base, params, recipe, config)


def open_base(
  config: TrainConfig, open_fn: Callable[..., Pipeline] | None = None
) -> Pipeline:
  """The teacher of a distillation, or the untrained model of a teacher run.

  Args:
    config: the run.
    open_fn: opens `config.teacher`, called as `open_model` is, the default.

  Raises:
    ValueError: if the teacher cannot be opened or does not fit the config.
  """
  if config.task == "distill":
    base = (open_fn or open_model)(config.teacher, config.scan, host=True)
    denoiser = base.denoiser
    if denoiser.config.scan != config.scan:
      raise ValueError(
        f"{config.teacher} is an unfinished run with scan="
        f"{denoiser.config.scan}; finish it, or set config.scan to the same"
      )
    if config.distill.negative_prompt:
      prompt = config.distill.negative_prompt
      recipe = dataclasses.replace(base.recipe, negative_prompt=prompt)
      base = base.with_params(base.params, recipe)
  else:
    base = _untrained(config)
    denoiser = base.denoiser
  _check_model(denoiser.config, base)
  denoiser = denoiser.with_config(
    dtype=config.dtype,
    remat=config.remat,
    scan=config.scan,
    attention=config.attention,
    context=config.context,
  )
  return dataclasses.replace(base, denoiser=denoiser)


def _untrained(config: TrainConfig) -> Pipeline:
  """A teacher to train, with the codec and text encoder of its data."""
  own = datasets.own_parts(config.data)
  if own is None:
    codec = datasets.digits_codec(config.data)
    encoder = datasets.digits_text_encoder()
    clip, fps = datasets.digits_clip_shape(), FPS
  else:
    codec, encoder, clip, fps = own
  shape = codec.latent_shape(*clip)
  recipe = Recipe(shape, fps, TEACHER_STEPS, TEACHER_GUIDANCE)
  denoiser = make_wan(config.model, config.shift)
  return Pipeline(denoiser, {}, codec, encoder, recipe)


def _check_model(model: WanConfig, base: Pipeline) -> None:
  """Checks that a network fits its codec and text encoder.

  Raises:
    ValueError: if a size does not.
  """
  channels = base.recipe.latent_shape[-1]
  width = base.null_prompt["null_text"].shape[-1]
  for name, have, need in (
    ("in_channels", model.in_channels, channels),
    ("out_channels", model.out_channels, channels),
    ("text_dim", model.text_dim, width),
  ):
    if have != need:
      raise ValueError(
        f"model.{name} is {have}, but the latents have {channels} channels "
        f"and the text embeddings {width}; set it to {need}"
      )


def sized_as_sets(
  base: Pipeline,
  sets: list[datasets.LatentSet],
  config: TrainConfig,
  mesh: Mesh,
) -> Pipeline:
  """The model that makes videos of the first set's size, and fits the others.

  Raises:
    ValueError: if a set is not for this model, or the run takes videos of one
      size only.
  """
  sized = [_sized_as_data(base, one.source[0], one.name) for one in sets]
  shapes = {model.recipe.latent_shape: model for model in sized}
  if len(shapes) > 1:
    found = ", ".join(
      f"{one.name} {model.recipe.latent_shape}"
      for one, model in zip(sets, sized, strict=True)
    )
    climbing = config.distill.climbing if config.task == "distill" else ()
    user = climbing[0] if climbing else config.guard.every and "guard.every"
    if user:
      raise ValueError(
        f"the data sets have latents of several shapes ({found}), but a run "
        f"with {user} takes one; give it sets of one shape"
      )
    text = base.null_prompt["null_text"].shape
    for shape, model in shapes.items():
      attention_choice(model, mesh)
      init = functools.partial(
        model.denoiser.init, latent_shape=shape, text_shape=text
      )
      jax.eval_shape(init, jax.random.key(0))  # refuses what it cannot take
  return sized[0]


def _sized_as_data(
  base: Pipeline, example: dict[str, Any], source: str
) -> Pipeline:
  """The model that makes videos of the size in a data set.

  Raises:
    ValueError: if that set was made with another codec or text encoder.
  """
  shape, text = example["latents"].shape, example["text"].shape
  channels = base.recipe.latent_shape[-1]
  if len(shape) != 4 or shape[-1] != channels:
    raise ValueError(
      f"latents in data set {source} have shape {shape}, but the model takes "
      f"[T, H, W, {channels}]; prepare the data with this model"
    )
  need = base.null_prompt["null_text"].shape
  if text != need:
    raise ValueError(
      f"text in data set {source} has shape {text}, but the model takes "
      f"{need}; prepare the data with this model"
    )
  return dataclasses.replace(base, recipe=base.recipe.of_size(shape))


def attention_choice(base: Pipeline, mesh: Mesh) -> Choice:
  """How self-attention is carried out, and why.

  Raises:
    ValueError: if what was asked for cannot be done on these devices.
  """
  c = base.denoiser.config
  patch = c.patch if isinstance(c, CogVideoXConfig) else c.patch_size
  tokens = math.prod(
    size // step
    for size, step in zip(base.recipe.latent_shape[:3], patch, strict=True)
  )
  return choose(
    c.attention,
    c.context,
    platform=platform_of(mesh),
    dtype=c.dtype,
    heads=c.num_attention_heads,
    head_dim=c.attention_head_dim,
    keys=tokens,
    axes=dict(mesh.shape),
  )


def with_trained(
  base: Pipeline, trained: Params, recipe: Recipe, config: TrainConfig
) -> Pipeline:
  """The result: a network's own parameters, or adapters on the teacher's."""
  if config.lora_rank:
    return base.with_adapters(trained, recipe)
  return base.with_params(trained, recipe)


def run_config(path: str) -> TrainConfig:
  """The config of a run's folder."""
  file = buckets.place(path) / CONFIG
  return from_config_dict(read_json(file), prefix=str(file))
