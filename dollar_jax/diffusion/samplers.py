"""Samplers as `lax.scan`: n guided teacher steps, or K student steps.

All noise is an argument, so that a video depends on its own seed only, never
on the batch it was made in.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dollar_jax.diffusion.process import Process
from dollar_jax.diffusion.solvers import ddim_step, renoise_step
from dollar_jax.typing import Array, PredictFn


def sample_teacher(
  predict: PredictFn, process: Process, noise: Array, grid: Array
) -> Array:
  """Integrates the probability-flow ODE from noise to data.

  Args:
    predict: guided `f(x_t, t) -> x0`.
    process: the noise process.
    noise: [B, ...] standard normal.
    grid: [n + 1] falling times from 1 to 0.

  Returns:
    `x0` [B, ...] float32 after n network calls.
  """
  grid = jnp.asarray(grid, jnp.float32)
  batch = noise.shape[0]

  def step(x_t: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
    t, s = (jnp.full((batch,), end) for end in ends)
    return ddim_step(process, x_t, predict(x_t, t), t, s), None

  x0, _ = jax.lax.scan(step, noise, (grid[:-1], grid[1:]))
  return x0


def student_inputs(
  predict: PredictFn,
  process: Process,
  noises: Array,
  grid: Array,
  fresh: float = 1.0,
) -> Array:
  """Walks the K-step student to its last input, in K - 1 network calls.

  Args:
    predict: `f(x_t, t) -> x0`.
    process: the noise process.
    noises: [K, B, ...] standard normal: the start, then what is added
      between the steps.
    grid: [K] falling times, the first 1.
    fresh: share of fresh noise between steps, 1 all, 0 none.

  Returns:
    The inputs `x_t` [K, B, ...] at each of the K times.
  """
  step = _student_step(predict, process, fresh)
  ends = _steps(noises, grid)
  last, inputs = jax.lax.scan(
    lambda x_t, at: (step(x_t, at)[0], x_t),
    noises[0],
    jax.tree.map(lambda x: x[:-1], ends),
  )
  return jnp.concatenate([inputs, last[None]])


def student_path(
  predict: PredictFn,
  process: Process,
  noises: Array,
  grid: Array,
  fresh: float = 1.0,
) -> tuple[Array, Array]:
  """Walks the K-step student to its video, in K network calls.

  All calls are one body of a loop, which is compiled once.

  Args:
    predict: see `student_inputs`, as for the rest.
    process: the noise process.
    noises: [K, B, ...].
    grid: [K].
    fresh: share of fresh noise.

  Returns:
    The inputs `x_t` and the answers `x0`, each [K, B, ...], at each of the K
    times; the last answer is the video's latent.
  """
  step = _student_step(predict, process, fresh)

  def keep(x_t: Array, at: tuple) -> tuple[Array, tuple[Array, Array]]:
    x_s, x0 = step(x_t, at)
    return x_s, (x_t, x0)

  _, path = jax.lax.scan(keep, noises[0], _steps(noises, grid))
  return path


def sample_student(
  predict: PredictFn,
  process: Process,
  noises: Array,
  grid: Array,
  fresh: float = 1.0,
) -> Array:
  """Returns the student's video latent [B, ...] after K network calls.

  The arguments are those of `student_path`, of which this keeps the last
  answer only.
  """
  step = _student_step(predict, process, fresh)
  start = noises[0], jnp.zeros_like(noises[0])
  (_, x0), _ = jax.lax.scan(
    lambda carry, at: (step(carry[0], at), None), start, _steps(noises, grid)
  )
  return x0


def _student_step(predict: PredictFn, process: Process, fresh: float) -> Any:
  """Returns `f(x_t, (t, s, noise)) -> (x_s, x0)` for scalar times."""

  def step(x_t: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    t, s = (jnp.full(x_t.shape[:1], end) for end in at[:2])
    x0 = predict(x_t, t)
    return renoise_step(process, x_t, x0, t, s, at[2], fresh), x0

  return step


def _steps(noises: Array, grid: Array) -> tuple[Array, Array, Array]:
  """Times and fresh noise of the K steps; nothing follows the last one."""
  grid = jnp.asarray(grid, jnp.float32)
  following = jnp.concatenate([grid[1:], grid[-1:]])
  return grid, following, jnp.concatenate([noises[1:], noises[:1]])
