"""A run from its config: model, data, training, export of the result."""

import contextlib
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from dollar_jax.data.mixing import mix_batches
from dollar_jax.data.moving_digits import FPS
from dollar_jax.evaluation.plots import TENTHS, calibration, guard_curves
from dollar_jax.interop import buckets
from dollar_jax.interop.folders import read_json
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.attention import Choice, choose
from dollar_jax.models.cogvideox import CogVideoXConfig
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.lora import init_adapters
from dollar_jax.models.wan import WanConfig
from dollar_jax.parallel import processes
from dollar_jax.parallel.mesh import check_batch, make_mesh, process_rows
from dollar_jax.rewards.mixture import get_mixture
from dollar_jax.train import datasets, metrics
from dollar_jax.train.checkpoint import read_networks
from dollar_jax.train.config import TrainConfig, from_config_dict, to_dict
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.guard import Guard
from dollar_jax.train.loop import CONFIG, Batches, fit
from dollar_jax.train.pixel_reward import PixelReward
from dollar_jax.train.policy import Policy
from dollar_jax.train.preference_tuner import PreferenceTuner
from dollar_jax.train.reward_tuner import RewardTuner
from dollar_jax.train.shared_labels import Decoder
from dollar_jax.train.student_step import Student
from dollar_jax.train.teacher_task import TeacherTask
from dollar_jax.typing import Params

GUARD_PLOT, CALIBRATION_PLOT = "guard.png", "calibration.png"
"""What a guard saw of a run, and how true the latent reward model's estimates
were of late; drawn when the run has ended."""

RECIPE = "recipe.json"
"""How the result is sampled, for whoever opens a run before it is finished."""

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
    data_folder: where embedded data is prepared; None is `workdir/data`, or a
      temporary folder of every process if the workdir is in a bucket.

  Returns:
    The finished model.

  Raises:
    ValueError: for a setting that does not fit, or training that diverged.
    OSError: if the workdir cannot be written.
  """
  mesh = make_mesh(config.mesh)
  rows = process_rows(config.data.batch_size, mesh)
  if config.distill.reward_weight and config.task == "distill":
    check_batch(config.reward.batch_size, mesh)
  folder = _open_folder(workdir)
  base = open_base(config)
  own = buckets.scratch() if buckets.is_remote(folder) else folder
  data = data_folder or str(own / "data")
  if not processes.is_first():
    processes.wait_for_all("data")
  sets = datasets.open_sets(
    config, base.codec, base.text_encoder, base.recipe.latent_shape, data
  )
  if processes.is_first():
    processes.wait_for_all("data")
  base = _sized_as_sets(base, sets, config, mesh)
  make = functools.partial(
    mix_batches,
    [one.source for one in sets],
    [one.weight for one in sets],
    config.data.batch_size,
    config.seed,
    rows,
  )
  batches = Batches(make, rows, mesh)
  choice = attention_choice(base, mesh)
  if progress and processes.is_first() and mesh.size > 1:
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{mesh.size} devices ({sizes}); attention by {choice}")
  task, recipe = make_task(config, base, mesh)
  notes = {RECIPE: recipe.to_json()}
  # on one device nothing is split, and no constraint stands in the way
  on_mesh = jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
  with on_mesh:
    state = fit(task, batches, config, workdir, progress, notes)
  trained = processes.to_host(task.result(state))
  result = _trained(base, trained, recipe, config)
  if processes.is_first():
    result.save(folder / "model", config=to_dict(config))
    _draw(folder, task, config)
  processes.wait_for_all("model")
  return result


def _draw(
  folder: epath.Path, task: TeacherTask | DistillTask, config: TrainConfig
) -> None:
  """Draws what is to be seen of the rewards of a run that has ended."""
  if config.guard.every:
    names = get_mixture(config.reward.name).names
    picture = guard_curves(metrics.read(folder), names)
    (folder / GUARD_PLOT).write_bytes(picture)
  if isinstance(task, DistillTask) and isinstance(task.tuner, RewardTuner):
    pairs = task.tuner.pairs
    if np.isfinite(pairs).all(axis=1).sum() >= TENTHS:
      picture = calibration(pairs, config.reward.name)
      (folder / CALIBRATION_PLOT).write_bytes(picture)


def _open_folder(workdir: str) -> epath.Path:
  """The run's folder, made if needed.

  Raises:
    OSError: if nothing can be written there.
  """
  folder = buckets.place(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not buckets.is_remote(folder):
      tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise OSError(
      f"workdir {folder} cannot be written ({error.strerror or error}); make "
      "it writable, or use another"
    ) from error
  return folder


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
    platform=mesh.devices.flat[0].platform,
    dtype=c.dtype,
    heads=c.num_attention_heads,
    head_dim=c.attention_head_dim,
    keys=tokens,
    axes=dict(mesh.shape),
  )


def _trained(
  base: Pipeline, trained: Params, recipe: Recipe, config: TrainConfig
) -> Pipeline:
  """The result: a network's own parameters, or adapters on the teacher's."""
  if config.lora_rank:
    return base.with_adapters(trained, recipe)
  return base.with_params(trained, recipe)


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


def _sized_as_sets(
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


def make_task(
  config: TrainConfig, base: Pipeline, mesh: Mesh
) -> tuple[TeacherTask | DistillTask, Recipe]:
  """What a run trains, and how the result is sampled.

  Args:
    config: the run.
    base: see `open_base`; of arrays, or of shapes for a plan.
    mesh: where it is trained.

  Raises:
    ValueError: if the student to start from or the reward does not fit.
  """
  if config.task == "distill":
    return _distillation(config, base, mesh)
  recipe, denoiser = base.recipe, base.denoiser
  shape = recipe.latent_shape
  task = TeacherTask(denoiser, config, base.null_prompt, shape, mesh)
  return task, recipe


def _distillation(
  config: TrainConfig, base: Pipeline, mesh: Mesh
) -> tuple[DistillTask, Recipe]:
  student = Student(base.denoiser, config.distill, config.lora_rank)
  tuner = guard = policy = pixels = None
  decoder = Decoder(base.codec, mesh) if config.distill.climbing else None
  if config.distill.reward_weight:
    sizes = base.recipe.latent_shape, base.null_prompt["null_text"].shape
    if config.reward.votes:
      tuner = PreferenceTuner(
        config, base.codec, base.encode, decoder, *sizes, mesh
      )
    else:
      tuner = RewardTuner(config, student, decoder, *sizes, mesh)
  if config.distill.ddpo_weight:
    policy = Policy(config, student, decoder, mesh)
  if config.distill.pixel_weight:
    pixels = PixelReward(config, base.codec, mesh)
  if config.guard.every:
    guard = Guard(config, student, decoder, mesh)
  start = None
  if config.student:
    start = _start(config.student, config.scan, config.lora_rank)
    like = base.params
    if config.lora_rank:
      like = init_adapters(jax.random.key(0), like, config.lora_rank)
    _check_start(start, like, config.student)
  task = DistillTask(
    student,
    base.params,
    config,
    base.null_prompt,
    mesh,
    tuner,
    guard,
    policy,
    pixels,
    start,
  )
  recipe = dataclasses.replace(
    base.recipe.as_student(student.grid),
    fresh_noise=config.distill.fresh_noise,
  )
  return task, recipe


def _start(path: str, scan: bool, lora_rank: int) -> dict[str, Params]:
  """Parameters, or adapters, to start the student and its fake score from.

  Raises:
    ValueError: if adapters of the rank are asked for and `path` is no run
      that trains such.
  """
  networks, rank = {}, 0
  if (buckets.place(path) / "checkpoints").is_dir():
    networks, rank = read_networks(path), _run_config(path).lora_rank
  if rank == lora_rank:
    found = {
      name: networks[name]["params"]
      for name in ("student", "fake_score")
      if networks.get(name)
    }
    if found:
      return found
  if lora_rank:
    raise ValueError(
      f"config.student is {path}, which holds no adapters of rank {lora_rank}; "
      "start from a run with the same config.lora_rank, make this student the "
      "teacher, or set config.lora_rank to 0"
    )
  return {"student": open_model(path, scan, host=True).params}


def _run_config(path: str) -> TrainConfig:
  """The config of a run's folder."""
  file = buckets.place(path) / CONFIG
  return from_config_dict(read_json(file), prefix=str(file))


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
  config = _run_config(name)
  base, networks = open_base(config), read_networks(name)
  state = networks if config.task == "teacher" else networks["student"]
  params = state["params"] if state["ema"] is None else state["ema"]
  recipe = Recipe.from_json(read_json(folder / RECIPE))
  if not host:
    params = jax.tree.map(jnp.asarray, params)
  return _trained(base, params, recipe, config)
