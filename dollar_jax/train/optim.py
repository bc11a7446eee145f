"""Optimisers, their schedules, and the averaged copy of the parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from optax.contrib import MuonDimensionNumbers, muon

from dollar_jax.train.config import OptimizerConfig
from dollar_jax.typing import Array, Params, PyTree

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple]
"""`(state, frozen, batch, key) -> (state, metrics)`, pure."""


@struct.dataclass
class Schedule:
  """The learning rate of each update, an `optax.Schedule`.

  Its numbers are arrays: as an argument of a step they are no constants of its
  program, so that runs of any length and rate share what was compiled.

  Attributes:
    peak: highest rate.
    warmup: updates over which it rises from `peak / warmup`.
    steps: updates in all.
    kind: a name in `SCHEDULES`, how it goes on from there.
  """

  peak: Array
  warmup: Array
  steps: Array
  kind: str = struct.field(pytree_node=False)

  def __call__(self, count: Array) -> Array:
    """The rate after `count` updates, float32."""
    rise = jnp.minimum(count / jnp.maximum(self.warmup, 1), 1.0)
    first = self.peak / jnp.maximum(self.warmup, 1)
    after = jnp.maximum(count - self.warmup, 0)
    left = jnp.maximum(self.steps - self.warmup, 1)
    fall = SCHEDULES[self.kind](jnp.minimum(after / left, 1.0))
    warm = first + rise * (self.peak - first)
    return jnp.where(count < self.warmup, warm, self.peak * fall)


SCHEDULES = {
  "constant": jnp.ones_like,
  "cosine": lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
  "linear": lambda done: 1.0 - done,
}
"""Share of the peak by the share of the updates after the warm-up."""


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
  """Returns the learning rate of each of `steps` updates.

  Raises:
    ValueError: for an unknown schedule or a warm-up longer than the run.
  """
  if not 0 <= config.warmup_steps <= steps:
    raise ValueError(
      f"warmup_steps is {config.warmup_steps}; it must lie between 0 and the "
      f"run's {steps} steps"
    )
  if config.schedule not in SCHEDULES:
    raise ValueError(
      f"schedule is {config.schedule!r}; use one of {sorted(SCHEDULES)}"
    )
  numbers = config.learning_rate, config.warmup_steps, steps
  return Schedule(*map(np.float32, numbers), config.schedule)


def scheduled(
  make_step: Callable[[optax.GradientTransformation, OptimizerConfig], StepFn],
  config: OptimizerConfig,
) -> StepFn:
  """Returns a step whose `Schedule` is `frozen["schedule"]`.

  Args:
    make_step: makes the step of an optimiser and its settings.
    config: the settings.
  """

  def step(state: PyTree, frozen: PyTree, batch: PyTree, key: Array) -> tuple:
    optimizer = make_optimizer(config, frozen["schedule"])
    return make_step(optimizer, config)(state, frozen, batch, key)

  return step


def make_optimizer(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clipping, then AdamW or Muon.

  Muon's updates are scaled to AdamW's root mean square (arXiv 2502.16982), so
  that one learning rate serves both kinds of parameter.

  Raises:
    ValueError: for an unknown optimiser or moment type.
  """
  if config.moment_dtype not in ("float32", "bfloat16"):
    raise ValueError(
      f"moment_dtype is {config.moment_dtype!r}; use 'float32' or 'bfloat16'"
    )
  if config.name == "adamw":
    update = optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=_is_matrix,
      mu_dtype=config.moment_dtype,
    )
  elif config.name == "muon":
    update = muon(
      schedule,
      beta=config.b1,
      adam_b2=config.b2,
      weight_decay=config.weight_decay,
      mu_dtype=config.moment_dtype,
      muon_weight_dimension_numbers=_muon_axes,
      consistent_rms=0.2,
    )
  else:
    raise ValueError(f"optimizer is {config.name!r}; use 'adamw' or 'muon'")
  if config.clip_norm <= 0:
    return update
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _named(params: Params, choose) -> PyTree:
  def at(path: tuple, leaf: Array):
    return choose(str(path[-1].key), leaf)

  return jax.tree_util.tree_map_with_path(at, params)


def _is_matrix(params: Params) -> PyTree:
  return _named(params, lambda name, leaf: name == "kernel")


def _muon_axes(params: Params) -> PyTree:
  """Muon for kernels; a stacked kernel is a stack of matrices."""

  def choose(name: str, leaf: Array) -> MuonDimensionNumbers | None:
    if name != "kernel" or leaf.ndim > 3:
      return None
    return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

  return _named(params, choose)


def update_ema(
  ema: Params, params: Params, decay: float, updates: Array
) -> Params:
  """Moves the average towards `params`.

  The decay is warmed up, `min(decay, (1 + n) / (10 + n))` at update n, so
  that a short run forgets where it started.
  """
  warm = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
  return jax.tree.map(lambda e, p: e + (1.0 - warm) * (p - e), ema, params)
