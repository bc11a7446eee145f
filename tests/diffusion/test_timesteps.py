"""Grids and draws of time."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from dollar_jax.diffusion import timesteps
from dollar_jax.diffusion.timesteps import shift_time

quick = hypothesis.settings(deadline=None, max_examples=50)
unit = st.floats(0, 1)
shifts = st.floats(0.1, 10)


@quick
@hypothesis.given(unit, shifts, shifts)
def test_shifts_compose_by_multiplication(t, first, second):
  both = shift_time(shift_time(t, first), second)
  assert both == pytest.approx(shift_time(t, first * second), abs=1e-9)
  assert shift_time(shift_time(t, first), 1 / first) == pytest.approx(t)


@quick
@hypothesis.given(unit, unit, shifts)
def test_shift_keeps_order_and_ends(t, s, shift):
  assert shift_time(0.0, shift) == 0.0
  assert shift_time(1.0, shift) == pytest.approx(1.0)
  low, high = sorted((t, s))
  assert shift_time(low, shift) <= shift_time(high, shift)
  assert shift_time(t, 1.0) == pytest.approx(t)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_multiplies_the_flows_noise_to_signal_ratio(shift):
  t = np.linspace(0.1, 0.9, 9)
  moved = shift_time(t, shift)
  np.testing.assert_allclose(moved / (1 - moved), shift * t / (1 - t))


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_shift_must_be_positive(shift):
  with pytest.raises(ValueError, match="must be above 0"):
    shift_time(0.5, shift)
  with pytest.raises(ValueError, match="must be above 0"):
    timesteps.teacher_grid(4, shift)


def test_teacher_grid():
  np.testing.assert_allclose(
    timesteps.teacher_grid(4), [1, 0.75, 0.5, 0.25, 0], atol=1e-7
  )
  grid = timesteps.teacher_grid(50, 5.0)
  assert grid.shape == (51,)
  assert grid.dtype == np.float32
  assert (grid[0], grid[-1]) == (1.0, 0.0)
  assert (np.diff(grid) < 0).all()
  assert grid[25] == pytest.approx(5 / 6)  # 5 t / (1 + 4 t) at a half


def test_student_grids_nest():
  np.testing.assert_array_equal(timesteps.student_grid(1), [1])
  np.testing.assert_array_equal(timesteps.student_grid(2), [1, 0.5])
  np.testing.assert_array_equal(timesteps.student_grid(4), [1, 0.75, 0.5, 0.25])
  np.testing.assert_allclose(timesteps.student_grid(2, 3.0), [1, 0.75])


@pytest.mark.parametrize("steps", [0, -3])
def test_grids_need_a_step(steps):
  for make in (timesteps.teacher_grid, timesteps.student_grid):
    with pytest.raises(ValueError, match=f"steps is {steps}; .* at least 1"):
      make(steps)


def test_hand_made_grid_is_checked():
  good = timesteps.check_student_grid((1.0, 0.9, 0.3))
  assert good.dtype == np.float32
  np.testing.assert_allclose(good, [1, 0.9, 0.3])
  for bad in [(), (0.9, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0), (1.0, 0.5, 0.7)]:
    with pytest.raises(ValueError, match="must start at 1 and fall strictly"):
      timesteps.check_student_grid(bad)


def test_score_times_are_uniform_before_the_shift():
  draw = jax.jit(timesteps.draw_score_time, static_argnums=(1, 2, 3, 4))
  t = np.asarray(draw(jax.random.key(0), 20_000, 3.0, 0.02, 0.98))
  assert t.shape == (20_000,)
  assert t.dtype == np.float32
  uniform = shift_time(t.astype(np.float64), 1 / 3)
  assert uniform.min() >= 0.02 - 1e-6
  assert uniform.max() <= 0.98 + 1e-6
  tenths, _ = np.histogram(uniform, np.linspace(0.02, 0.98, 11))
  np.testing.assert_allclose(tenths, 2000, rtol=0.1)  # 4.7 deviations


def _draw_pairs(grid, jump, batch=20_000):
  pairs = jax.jit(timesteps.consistency_pairs, static_argnums=(1, 3))
  t, s = pairs(jax.random.key(1), batch, grid, jump)
  index = {float(time): i for i, time in enumerate(grid)}
  return (np.array([index[float(x)] for x in ends]) for ends in (t, s))


@pytest.mark.parametrize("jump", [1, 5, 9])
def test_every_start_of_a_jump_is_equally_likely(jump):
  grid = timesteps.teacher_grid(10, 3.0)
  start, end = _draw_pairs(grid, jump)
  np.testing.assert_array_equal(end - start, jump)
  counts = np.bincount(start, minlength=11)
  places = 10 - jump + 1  # the last of which ends at s = 0
  np.testing.assert_allclose(counts[:places], 20_000 / places, rtol=0.1)
  assert counts[places:].sum() == 0


def test_the_longest_jump_goes_from_noise_to_data():
  start, end = _draw_pairs(timesteps.teacher_grid(10), 10, batch=8)
  assert (set(start), set(end)) == ({0}, {10})


@pytest.mark.parametrize("jump", [0, 11, -1])
def test_jump_must_fit_the_grid(jump):
  grid = timesteps.teacher_grid(10)
  with pytest.raises(ValueError, match=f"jump is {jump}; .* allows 1 to 10"):
    timesteps.consistency_pairs(jax.random.key(0), 4, grid, jump)
