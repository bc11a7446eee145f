"""Training of a teacher, from scratch on real latents."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from dollar_jax.models.denoiser import Denoiser
from dollar_jax.parallel import rules
from dollar_jax.parallel.compilation import compiler_options
from dollar_jax.parallel.mesh import platform_of
from dollar_jax.train import state as states
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.descriptions import architecture, structure
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.optim import make_optimizer, make_schedule, scheduled
from dollar_jax.train.state import NetworkState
from dollar_jax.train.teacher_step import make_teacher_step
from dollar_jax.typing import Array, Params, PyTree


class TeacherTask:
  """Trains a denoiser from scratch on real latents.

  Attributes:
    description: see `loop.Task`.
    step: the jitted `(state, frozen, batch, key) -> (state, metrics)`.
  """

  def __init__(
    self,
    denoiser: Denoiser,
    config: TrainConfig,
    null_prompt: dict[str, np.ndarray],
    latent_shape: tuple[int, ...],
    mesh: Mesh,
  ):
    """Prepares the step; nothing is compiled yet.

    Args:
      denoiser: the network.
      config: the run.
      null_prompt: `null_text` [S, D], `null_mask` [S], for dropped captions.
      latent_shape: T, H, W, C.
      mesh: where it is trained; arrays are put there by `init`.
    """
    self._config, self._mesh = config, mesh
    self._denoiser, self._latent_shape = denoiser, latent_shape
    self._null_prompt, self._frozen = null_prompt, {}
    self._schedule = make_schedule(config.optimizer, config.steps)
    self._optimizer = make_optimizer(config.optimizer, self._schedule)
    everywhere = rules.replicated(mesh)
    state = jax.eval_shape(self._create, jax.random.key(0))
    self._shapes = states.placed(state, denoiser.logical_axes, mesh)
    make_step = functools.partial(
      make_teacher_step,
      denoiser,
      caption_dropout=config.data.caption_dropout,
    )
    self.step = jax.jit(
      scheduled(make_step, config.optimizer),
      donate_argnums=0,
      compiler_options=compiler_options(platform_of(mesh)),
      out_shardings=(rules.shardings_of(self._shapes), everywhere),
    )
    self.description = {
      "task": "teacher",
      "model": architecture(denoiser),
      "optimizer": structure(config.optimizer),
    }

  def init(self) -> NetworkState:
    """A fresh network."""
    frozen = self._null_prompt | {"schedule": self._schedule}
    self._frozen = rules.put(frozen, rules.replicated(self._mesh))
    key = named_key(self._config.seed, "init", 0)
    shardings = rules.shardings_of(self._shapes)
    return jax.jit(self._create, out_shardings=shardings)(key)

  def _create(self, key: Array) -> NetworkState:
    text_shape = self._null_prompt["null_text"].shape
    params = self._denoiser.init(key, self._latent_shape, text_shape)
    ema = self._config.optimizer.ema > 0
    return states.create(params, self._optimizer, ema)

  def update(
    self, state: NetworkState, batches: Batches, index: int
  ) -> tuple[NetworkState, dict[str, Array]]:
    """One gradient update."""
    batch, _ = batches.next()
    key = named_key(self._config.seed, "teacher", index)
    return self.step(state, self._frozen, batch, key)

  def to_saved(self, state: NetworkState) -> PyTree:
    """The state as it is."""
    return state

  def from_saved(self, saved: PyTree) -> NetworkState:
    """The state as it is."""
    return saved

  def ended(self) -> None:
    """A teacher is trained to the end."""

  def result(self, state: NetworkState) -> Params:
    """The teacher, averaged."""
    return state.averaged

  def programs(self, batch: PyTree, start: int = 0) -> dict[str, Program]:
    """What a run compiles, by name; see `loop.Task.programs`."""
    del start  # they are the same from first to last
    everywhere = rules.replicated(self._mesh)
    frozen = self._null_prompt | {"schedule": self._schedule}
    frozen = rules.placed(frozen, everywhere)
    args = self._shapes, frozen, batch, rules.key_shape()
    return {"teacher": Program(self.step, args)}

  def resident(self) -> dict[str, PyTree]:
    """Shapes of what stays on the devices, by name."""
    return {"teacher": self._shapes}

  def close(self) -> None:
    """Nothing runs in the background."""
