"""A run from its config: model, data, training, export of the result."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from dollar_jax.data.moving_digits import FPS
from dollar_jax.data.pipeline import make_batches
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.wan import WanConfig
from dollar_jax.parallel.mesh import check_batch, make_mesh
from dollar_jax.train import datasets
from dollar_jax.train.checkpoint import read_networks
from dollar_jax.train.config import TrainConfig, from_config_dict, to_dict
from dollar_jax.train.loop import Batches, fit
from dollar_jax.train.reward_tuner import RewardTuner
from dollar_jax.train.student_step import Student
from dollar_jax.train.tasks import DistillTask, TeacherTask
from dollar_jax.typing import Params

TEACHER_STEPS = 50
TEACHER_GUIDANCE = 1.6
"""How a teacher trained here is sampled, unless told otherwise."""


def train(
  config: TrainConfig,
  workdir: str,
  progress: bool = True,
  data_folder: str | None = None,
) -> Pipeline:
  """Trains what the config says and exports it to `workdir/model`.

  Args:
    config: the run.
    workdir: its folder; a checkpoint there is continued from.
    progress: whether to show a bar.
    data_folder: where embedded data is prepared; None is `workdir/data`.

  Returns:
    The finished model.

  Raises:
    ValueError: for a setting that does not fit, or training that diverged.
    OSError: if the workdir cannot be written.
  """
  check_batch(config.data.batch_size, make_mesh())
  if config.distill.reward_weight and config.task == "distill":
    check_batch(config.reward.batch_size, make_mesh())
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  base = _base(config)
  source = datasets.open_data(
    config.data,
    base.codec,
    base.text_encoder,
    data_folder or str(folder / "data"),
  )
  base = _sized_as_data(base, source[0], config.data.source)
  batches = Batches(make_batches(source, config.data.batch_size, config.seed))
  if config.task == "teacher":
    task = TeacherTask(
      base.denoiser, config, base.null_prompt, base.recipe.latent_shape
    )
    state = fit(task, batches, config, workdir, progress)
    result = base.with_params(state.averaged, base.recipe)
  else:
    task, recipe = _distillation(config, base)
    state = fit(task, batches, config, workdir, progress)
    result = base.with_params(state.student.averaged, recipe)
  result = dataclasses.replace(result, params=jax.device_get(result.params))
  result.save(folder / "model", config=to_dict(config))
  return result


def _base(config: TrainConfig) -> Pipeline:
  """The teacher of a distillation, or the untrained model of a teacher run."""
  if config.task == "distill":
    base = open_model(config.teacher, config.scan)
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
    codec = datasets.digits_codec(config.data)
    clip = datasets.digits_clip_shape()
    base = Pipeline(
      make_wan(config.model, config.shift),
      {},
      codec,
      datasets.digits_text_encoder(),
      Recipe(codec.latent_shape(*clip), FPS, TEACHER_STEPS, TEACHER_GUIDANCE),
    )
    denoiser = base.denoiser
  _check_model(denoiser.config, base)
  denoiser = denoiser.with_config(
    dtype=config.dtype, remat=config.remat, scan=config.scan
  )
  return dataclasses.replace(base, denoiser=denoiser)


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


def _distillation(
  config: TrainConfig, base: Pipeline
) -> tuple[DistillTask, Recipe]:
  student = Student(base.denoiser, config.distill)
  tuner = None
  if config.distill.reward_weight:
    tuner = RewardTuner(
      config,
      student,
      jax.jit(base.codec.decode),
      base.recipe.latent_shape,
      base.null_prompt["null_text"].shape,
    )
  start = None
  if config.student:
    start = _start(config.student, config.scan)
    _check_start(start, base.params, config.student)
  task = DistillTask(
    student, base.params, config, base.null_prompt, tuner, start
  )
  recipe = dataclasses.replace(
    base.recipe.as_student(student.grid),
    fresh_noise=config.distill.fresh_noise,
  )
  return task, recipe


def _start(path: str, scan: bool) -> dict[str, Params]:
  """Parameters to start the student (and its fake score) from."""
  if (epath.Path(path) / "checkpoints").is_dir():
    networks = read_networks(path)
    found = {
      name: networks[name]["params"]
      for name in ("student", "fake_score")
      if networks.get(name)
    }
    if found:
      return found
  return {"student": open_model(path, scan).params}


def _check_start(start: dict[str, Params], teacher: Params, name: str) -> None:
  """Checks that a student to start from is of the teacher's architecture.

  Raises:
    ValueError: if it is not.
  """
  shapes = jax.tree.map(jnp.shape, teacher)
  if any(
    jax.tree.map(jnp.shape, params) != shapes for params in start.values()
  ):
    raise ValueError(
      f"the student in {name} is not of the teacher's architecture, or was "
      "trained with another config.scan; choose another"
    )


def open_model(name: str, scan: bool = False) -> Pipeline:
  """Opens "embedded", a model folder, or a run's folder.

  A run that is finished has its model in `name/model`; of one that is not,
  the newest checkpoint's average is taken, and `scan` is as in that run.

  Raises:
    ValueError: if it is none of these, or damaged.
  """
  folder = epath.Path(name)
  if (folder / "model").is_dir():
    return Pipeline.load(str(folder / "model"), scan)
  config_file = folder / "config.json"
  if not (folder / "checkpoints").is_dir() or not config_file.exists():
    return Pipeline.load(name, scan)
  config = from_config_dict(json.loads(config_file.read_text()))
  base, networks = _base(config), read_networks(name)
  if config.task == "teacher":
    state, recipe = networks, base.recipe
  else:
    grid = Student(base.denoiser, config.distill).grid
    state, recipe = networks["student"], base.recipe.as_student(grid)
    fresh = config.distill.fresh_noise
    recipe = dataclasses.replace(recipe, fresh_noise=fresh)
  params = state["params"] if state["ema"] is None else state["ema"]
  return base.with_params(jax.tree.map(jnp.asarray, params), recipe)
