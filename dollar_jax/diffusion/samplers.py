"""Samplers as `lax.scan`: n guided teacher steps, or K student steps.

All noise is an argument, so that a video depends on its own seed only, never
on the batch it was made in.
"""

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


def student_path(
  predict: PredictFn,
  process: Process,
  noises: Array,
  grid: Array,
  fresh: float = 1.0,
) -> tuple[Array, Array]:
  """Walks the K-step student to its last input, in K - 1 network calls.

  Args:
    predict: `f(x_t, t) -> x0`.
    process: the noise process.
    noises: [K, B, ...] standard normal: the start, then what is added
      between the steps.
    grid: [K] falling times, the first 1.
    fresh: share of fresh noise between steps, 1 all, 0 none.

  Returns:
    The inputs `x_t` [K, B, ...] at each of the K times, and the answers `x0`
    [K - 1, B, ...] at all but the last, which is left to the caller.
  """
  grid = jnp.asarray(grid, jnp.float32)
  batch = noises.shape[1]

  def step(x_t: Array, at: tuple[Array, Array, Array]):
    t, s = (jnp.full((batch,), end) for end in at[:2])
    x0 = predict(x_t, t)
    x_s = renoise_step(process, x_t, x0, t, s, at[2], fresh)
    return x_s, (x_s, x0)

  pairs = grid[:-1], grid[1:], noises[1:]
  _, (later, answers) = jax.lax.scan(step, noises[0], pairs)
  return jnp.concatenate([noises[:1], later]), answers


def sample_student(
  predict: PredictFn,
  process: Process,
  noises: Array,
  grid: Array,
  fresh: float = 1.0,
) -> Array:
  """Returns the student's video latent [B, ...] after K network calls.

  The arguments are those of `student_path`.
  """
  inputs, _ = student_path(predict, process, noises, grid, fresh)
  last = jnp.full(noises.shape[1:2], grid[-1], jnp.float32)
  return predict(inputs[-1], last)
