"""A run from its config: model, data, training, export of the result."""

import contextlib
import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from dollar_jax.data.mixing import mix_batches
from dollar_jax.interop import buckets
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.lora import init_adapters
from dollar_jax.parallel import processes
from dollar_jax.parallel.mesh import check_batch, make_mesh, process_rows
from dollar_jax.rewards.mixture import get_mixture
from dollar_jax.train import datasets, metrics
from dollar_jax.train.checkpoint import read_networks
from dollar_jax.train.config import TrainConfig, to_dict
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.guard import Guard
from dollar_jax.train.loop import Batches, batch_shapes, fit
from dollar_jax.train.models import (
  RECIPE,
  attention_choice,
  open_base,
  open_model,
  run_config,
  sized_as_sets,
  with_trained,
)
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
  base = sized_as_sets(base, sets, config, mesh)
  make = functools.partial(
    mix_batches,
    [one.source for one in sets],
    [one.weight for one in sets],
    config.data.batch_size,
    config.seed,
    rows,
    config.data.ahead,
  )
  batches = Batches(make, rows, mesh)
  shapes = batch_shapes(sets[0].source[0], config.data.batch_size, mesh)
  choice = attention_choice(base, mesh)
  if progress and processes.is_first() and mesh.size > 1:
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{mesh.size} devices ({sizes}); attention by {choice}")
  task, recipe = make_task(config, base, mesh)
  notes = {RECIPE: recipe.to_json()}
  # on one device nothing is split, and no constraint stands in the way
  on_mesh = jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
  with on_mesh:
    state = fit(task, batches, config, workdir, progress, notes, shapes)
  trained = processes.to_host(task.result(state))
  result = with_trained(base, trained, recipe, config)
  if processes.is_first():
    result.save(folder / "model", config=to_dict(config))
    _draw(folder, task, config)
  processes.wait_for_all("model")
  return result


def _draw(
  folder: epath.Path, task: TeacherTask | DistillTask, config: TrainConfig
) -> None:
  """Draws what is to be seen of the rewards of a run that has ended."""
  rewarded = isinstance(task, DistillTask) and isinstance(
    task.tuner, RewardTuner
  )
  if not config.guard.every and not rewarded:
    return
  # matplotlib takes a second, which only those who draw should wait for
  from dollar_jax.evaluation.plots import TENTHS, calibration, guard_curves

  if config.guard.every:
    names = get_mixture(config.reward.name).names
    picture = guard_curves(metrics.read(folder), names)
    (folder / GUARD_PLOT).write_bytes(picture)
  if rewarded:
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
    networks, rank = read_networks(path), run_config(path).lora_rank
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
