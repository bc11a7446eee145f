"""A run without its arrays: every program and its shapes, from the config."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dollar_jax.interop.outline import outline
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.parallel.mesh import check_batch
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.loop import batch_shapes
from dollar_jax.train.models import open_base
from dollar_jax.train.runs import make_task
from dollar_jax.train.teacher_task import TeacherTask
from dollar_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Outline:
  """What a run would be.

  Attributes:
    base: the teacher, or the untrained model, its arrays as shapes.
    task: its steps, on the mesh.
    batch: shapes of a training batch, placed.
  """

  base: Pipeline
  task: TeacherTask | DistillTask
  batch: PyTree


def outline_run(config: TrainConfig, mesh: Mesh) -> Outline:
  """Prepares a run as `runs.train` does, without weights, data or devices.

  Args:
    config: the run; a `student` to start from is not looked at.
    mesh: of devices that may not be here.

  Raises:
    ValueError: for a setting that does not fit, as in training.
  """
  config = dataclasses.replace(config, student="")
  check_batch(config.data.batch_size, mesh)
  if config.task == "distill" and config.distill.reward_weight:
    check_batch(config.reward.batch_size, mesh)
  base = open_base(config, lambda name, scan, host: outline(name, scan=scan))
  if clip := config.data.clip:
    recipe = base.recipe.of_size(base.codec.latent_shape(*clip))
    base = dataclasses.replace(base, recipe=recipe)
  shape = base.recipe.latent_shape
  task, _ = make_task(config, base, mesh)
  text = base.null_prompt["null_text"].shape

  example = {
    "latents": jax.ShapeDtypeStruct(shape, jnp.float32),
    "text": jax.ShapeDtypeStruct(text, jnp.float32),
    "text_mask": jax.ShapeDtypeStruct(text[:1], bool),
  }
  batch = batch_shapes(example, config.data.batch_size, mesh)
  return Outline(base, task, batch)
