"""Grids and draws of time, all in [0, 1] with 1 = noise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array


def shift_time(t: Array, shift: float) -> Array:
  """Moves times towards noise: `s t / (1 + (s - 1) t)`; 1 is no shift.

  Keeps 0 and 1 fixed (Esser et al., arXiv 2403.03206, Eq. 23).

  Raises:
    ValueError: if shift is not positive.
  """
  if shift <= 0:
    raise ValueError(f"time shift is {shift}; it must be above 0 (1 = none)")
  return shift * t / (1.0 + (shift - 1.0) * t)


def teacher_grid(steps: int, shift: float = 1.0) -> np.ndarray:
  """Returns the `steps + 1` falling times from 1 to 0 of a teacher sampler.

  Raises:
    ValueError: if steps is below 1 or shift is not positive.
  """
  if steps < 1:
    raise ValueError(f"sampling steps is {steps}; it must be at least 1")
  uniform = np.linspace(1.0, 0.0, steps + 1, dtype=np.float64)
  return np.asarray(shift_time(uniform, shift), np.float32)


def student_grid(steps: int, shift: float = 1.0) -> np.ndarray:
  """Returns the K falling times at which a student is evaluated; tau_1 = 1.

  A K-step student uses `shift_time(1 - k/K)`, k = 0 … K-1: [1], [1, .5],
  [1, .75, .5, .25] before the shift.

  Raises:
    ValueError: if steps is below 1 or shift is not positive.
  """
  return teacher_grid(steps, shift)[:-1]


def check_student_grid(grid: tuple[float, ...]) -> np.ndarray:
  """Returns a hand-made student grid as float32 after checking it.

  Raises:
    ValueError: unless it starts at 1 and falls strictly, staying above 0.
  """
  times = np.asarray(grid, np.float32)
  good = times.ndim == 1 and times.size > 0 and times[0] == 1.0
  if not (good and np.all(np.diff(times) < 0) and times[-1] > 0):
    raise ValueError(
      f"student grid is {tuple(grid)}; it must start at 1 and fall strictly "
      "to a time above 0, e.g. (1.0, 0.75, 0.5, 0.25)"
    )
  return times


def draw_score_time(
  key: chex.PRNGKey, batch: int, shift: float, low: float, high: float
) -> Array:
  """Draws `t ~ U[low, high]`, then shifts it; [batch] float32.

  The draw is clamped before the shift, so that no mass piles up at the ends.
  """
  t = jax.random.uniform(key, (batch,), jnp.float32, low, high)
  return shift_time(t, shift)


def consistency_pairs(
  key: chex.PRNGKey, batch: int, grid: Array, jump: int
) -> tuple[Array, Array]:
  """Draws the two ends of a k-step jump on the teacher's grid.

  Args:
    key: random key.
    batch: number of pairs.
    grid: [n + 1] falling times from 1 to 0 (`teacher_grid`).
    jump: k, grid points between the two ends.

  Returns:
    (t, s), each [batch], with `t > s`; every start from which a whole jump
    fits is equally likely, and `s = 0` is among the ends.

  Raises:
    ValueError: unless 1 ≤ jump ≤ n.
  """
  n = grid.shape[0] - 1
  if not 1 <= jump <= n:
    raise ValueError(
      f"consistency jump is {jump}; the teacher's grid of {n} steps allows "
      f"1 to {n}"
    )
  start = jax.random.randint(key, (batch,), 0, n - jump + 1)
  grid = jnp.asarray(grid)
  return grid[start], grid[start + jump]
