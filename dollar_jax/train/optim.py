"""Optimisers, their schedules, and the averaged copy of the parameters."""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from dollar_jax.train.config import OptimizerConfig
from dollar_jax.typing import Array, Params, PyTree


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """The learning rate of each of `steps` updates.

  Raises:
    ValueError: for an unknown schedule or a warm-up longer than the run.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  if not 0 <= warmup <= steps:
    raise ValueError(
      f"warmup_steps is {warmup}; it must lie between 0 and the run's "
      f"{steps} steps"
    )
  rest = max(steps - warmup, 1)
  tails = {
    "constant": optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule(peak, rest),
    "linear": optax.linear_schedule(peak, 0.0, rest),
  }
  if config.schedule not in tails:
    raise ValueError(
      f"schedule is {config.schedule!r}; use one of {sorted(tails)}"
    )
  if not warmup:
    return tails[config.schedule]
  ramp = optax.linear_schedule(peak / warmup, peak, warmup)
  return optax.join_schedules([ramp, tails[config.schedule]], [warmup])


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Clipping, then AdamW or Muon.

  Muon's updates are scaled to AdamW's root mean square (arXiv 2502.16982), so
  that one learning rate serves both kinds of parameter.

  Raises:
    ValueError: for an unknown optimiser or moment type.
  """
  schedule = make_schedule(config, steps)
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
