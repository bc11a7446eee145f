"""Noise processes and conversions: round trips and closed forms."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion.process import PREDICTIONS, FlowProcess, VPProcess

PROCESSES = [
  pytest.param(FlowProcess(), id="flow"),
  pytest.param(VPProcess(), id="vp"),
  pytest.param(VPProcess(snr_shift_scale=3.0), id="vp-shifted"),
  pytest.param(VPProcess(zero_terminal_snr=False), id="vp-ddpm"),
]
every_process = pytest.mark.parametrize("process", PROCESSES)
every_kind = pytest.mark.parametrize("kind", PREDICTIONS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def convert_all_ways(process, kind, x0, eps, t):
  """(target, x0 of the target, output of the x0, x0 of that output)."""
  x_t = processes.add_noise(process, x0, eps, t)
  output = processes.target(process, x0, eps, t, kind)
  back = processes.from_x0(process, x0, x_t, t, kind)
  to_x0 = functools.partial(processes.to_x0, process)
  return output, to_x0(output, x_t, t, kind), back, to_x0(back, x_t, t, kind)


add_noise = jax.jit(processes.add_noise, static_argnums=0)
to_x0 = jax.jit(processes.to_x0, static_argnums=(0, 4))
target = jax.jit(processes.target, static_argnums=(0, 4))
_levels = jax.jit(lambda p, t: (p.alpha(t), p.sigma(t)), static_argnums=0)


def levels(process, t):
  """Signal and noise level at times, as NumPy arrays."""
  return tuple(np.asarray(x) for x in _levels(process, np.float32(t)))


latents = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4)
times = st.lists(st.floats(1 / 64, 61 / 64, width=32), min_size=2, max_size=2)


def _pair(values):
  """Four numbers as a batch of two tiny latents [2, 1, 1, 1, 2]."""
  return np.array(values, np.float32).reshape(2, 1, 1, 1, 2)


@pytest.mark.parametrize("process", PROCESSES[:2])
@every_kind
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(latents, latents, times)
def test_conversions_round_trip(process, kind, x0, eps, t):
  x0, eps, t = _pair(x0), _pair(eps), np.array(t, np.float32)
  output, x0_of_output, back, x0_of_back = convert_all_ways(
    process, kind, x0, eps, t
  )
  # "eps" divides by alpha on the way to x0, all but "x0" by sigma on the way
  # back: rounding grows by as much
  size = 1e-5 * max(np.abs(x0).max(), np.abs(eps).max(), 1)
  alpha, sigma = (level.min() for level in levels(process, t))
  loss = size / (alpha if kind == "eps" else 1)
  np.testing.assert_allclose(x0_of_output, x0, rtol=0, atol=loss)
  np.testing.assert_allclose(x0_of_back, x0, rtol=0, atol=loss)
  loss = size / (1 if kind == "x0" else sigma)
  np.testing.assert_allclose(back, output, rtol=0, atol=loss)


@every_process
def test_each_sample_is_noised_by_its_own_time(process):
  t = np.array([0.2, 0.7], np.float32)
  ones = np.ones((2, 3, 2, 2, 4), np.float32)
  mixed = np.asarray(add_noise(process, 2 * ones, 5 * ones, t))
  for row, alpha, sigma in zip(mixed, *levels(process, t), strict=True):
    wanted = 2 * alpha + 5 * sigma
    np.testing.assert_allclose(row, np.full(row.shape, wanted), rtol=1e-6)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.floats(0, 1, width=32))
def test_levels_add_up(t):
  alpha, sigma = levels(FlowProcess(), t)
  assert float(alpha + sigma) == pytest.approx(1, abs=1e-6)
  alpha, sigma = levels(VPProcess(), t)
  assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-6)


@every_process
def test_noise_grows_with_time(process):
  alpha, sigma = levels(process, np.linspace(0, 1, 301))
  assert (np.diff(alpha) < 0).all()
  assert (np.diff(sigma) > 0).all()


@every_process
def test_time_0_is_data_exactly(process):
  assert levels(process, 0.0) == (1.0, 0.0)


def test_time_1_is_noise_exactly_where_the_process_says_so():
  for process in (FlowProcess(), VPProcess(), VPProcess(snr_shift_scale=3.0)):
    assert levels(process, 1.0) == (0.0, 1.0)
  assert float(levels(VPProcess(zero_terminal_snr=False), 1.0)[0]) > 0.05


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_snr_shift_divides_the_signal_to_noise_ratio(scale):
  t = np.linspace(0.05, 1, 20)
  plain = VPProcess(zero_terminal_snr=False)
  shifted = VPProcess(zero_terminal_snr=False, snr_shift_scale=scale)
  pairs = (levels(p, t) for p in (plain, shifted))
  before, after = ((alpha / sigma) ** 2 for alpha, sigma in pairs)
  np.testing.assert_allclose(after, before / scale, rtol=1e-3)


def test_between_indices_the_cumulative_product_is_linear():
  vp = VPProcess()
  low, middle, high = (
    float(levels(vp, i / 1000)[0] ** 2) for i in (400, 400.5, 401)
  )
  assert low > middle > high
  assert middle == pytest.approx((low + high) / 2, rel=1e-5)


def test_vp_velocity_is_a_rotation():
  """v at the angle of (alpha, sigma), by which x0 and eps are turned."""
  angle = np.array([0.3, 1.1])
  process = VPProcess()
  # the time at which alpha is the cosine of the angle
  grid = np.linspace(0, 1, 100_001, dtype=np.float32)
  alpha, _ = levels(process, grid)
  t = grid[np.abs(alpha - np.cos(angle)[:, None]).argmin(1)]
  x0, eps = (np.array(x, np.float32) for x in ([[1], [2]], [[-3], [0.5]]))
  v = target(process, x0, eps, t, "v")
  cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
  np.testing.assert_allclose(v, cos * eps - sin * x0, atol=1e-3)


@every_kind
def test_conversion_is_float32_whatever_goes_in(kind):
  half = np.full((1, 2), 0.3, jnp.bfloat16)
  t = np.array([0.5], np.float32)
  x0 = to_x0(FlowProcess(), half, half, t, kind)
  assert x0.dtype == jnp.float32
  # not rounded to the eight bits of bfloat16 on the way
  exact = np.float32(half[0, 0])
  wanted = {"x0": exact, "eps": exact, "v": 0.0, "flow": exact / 2}[kind]
  np.testing.assert_allclose(x0, np.full((1, 2), wanted), rtol=1e-6)


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_few_step_kinds_are_finite_at_pure_noise(kind):
  t, x_t, x0 = (np.array(x, np.float32) for x in ([1], [[3]], [[2]]))
  for process in (FlowProcess(), VPProcess()):
    wanted = target(process, x0, x_t, t, kind)
    found = to_x0(process, wanted, x_t, t, kind)
    np.testing.assert_allclose(found, x0, rtol=1e-6)


def test_unknown_names_are_refused():
  flow, x, t = FlowProcess(), np.ones((1, 1)), np.ones(1)
  for convert in (processes.to_x0, processes.from_x0, processes.target):
    with pytest.raises(ValueError, match="'score' is unknown; use one of"):
      convert(flow, x, x, t, "score")
  with pytest.raises(ValueError, match="'ve' is unknown"):
    processes.make_process("ve")
  with pytest.raises(ValueError, match="'sigmoid' is unknown"):
    VPProcess(beta_schedule="sigmoid").alpha(t)


def test_make_process_passes_options_on():
  assert processes.make_process("flow") == FlowProcess()
  made = processes.make_process("vp", snr_shift_scale=3.0)
  assert made == VPProcess(snr_shift_scale=3.0)
