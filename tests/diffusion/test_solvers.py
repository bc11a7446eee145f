"""One step along the path from noise to data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion import solvers
from dollar_jax.diffusion.process import FlowProcess, VPProcess

# Compiled as a whole: operation by operation takes several times as long.
add_noise = jax.jit(processes.add_noise, static_argnums=0)
from_x0 = jax.jit(processes.from_x0, static_argnums=(0, 4))
levels = jax.jit(processes.levels, static_argnums=0)
ddim_step = jax.jit(solvers.ddim_step, static_argnums=0)
implied_noise = jax.jit(solvers.implied_noise, static_argnums=0)
renoise_score = jax.jit(solvers.renoise_score, static_argnums=(0, 4))
renoise_step = jax.jit(solvers.renoise_step, static_argnums=(0, 6))

PROCESSES = [
  pytest.param(FlowProcess(), id="flow"),
  pytest.param(VPProcess(), id="vp"),
]
every_process = pytest.mark.parametrize("process", PROCESSES)
T, S = np.array([[1.0, 0.6], [0.7, 0.25]], np.float32)


@pytest.fixture
def arrays():
  """x_t, x0 and fresh noise [2, 2, 3, 3, 2], unrelated to each other."""
  rng = np.random.default_rng(0)
  return tuple(rng.standard_normal((3, 2, 2, 3, 3, 2)).astype(np.float32))


@every_process
def test_a_step_to_0_is_x0_to_the_bit(process, arrays):
  x_t, x0, eps = arrays
  zero = np.zeros(2, np.float32)
  np.testing.assert_array_equal(ddim_step(process, x_t, x0, T, zero), x0)
  step = renoise_step(process, x_t, x0, T, zero, eps, 0.5)
  np.testing.assert_array_equal(step, x0)


@every_process
def test_a_step_to_the_same_time_stays(process, arrays):
  x_t, x0, _ = arrays
  np.testing.assert_allclose(
    ddim_step(process, x_t, x0, T, T), x_t, rtol=1e-5, atol=1e-6
  )


def test_vp_step_is_the_textbook_ddim(arrays):
  """Eq. 12 of arXiv 2010.02502 at eta = 0, in float64."""
  x_t, x0, _ = arrays
  process, t = VPProcess(), np.array([0.8, 0.6], np.float32)
  abar_t, abar_s = (
    np.asarray(levels(process, time, x_t)[0], np.float64) ** 2
    for time in (t, S)
  )
  x = np.asarray(x_t, np.float64)
  eps = np.asarray(from_x0(process, x0, x_t, t, "eps"), np.float64)
  clean = (x - np.sqrt(1 - abar_t) * eps) / np.sqrt(abar_t)
  textbook = np.sqrt(abar_s) * clean + np.sqrt(1 - abar_s) * eps
  np.testing.assert_allclose(
    ddim_step(process, x_t, x0, t, S), textbook, rtol=1e-4, atol=1e-5
  )


def test_flow_step_is_eulers(arrays):
  x_t, x0, _ = arrays
  process = FlowProcess()
  velocity = np.asarray(from_x0(process, x0, x_t, T, "flow"))
  euler = x_t + (S - T).reshape(2, 1, 1, 1, 1) * velocity
  np.testing.assert_allclose(
    ddim_step(process, x_t, x0, T, S), euler, rtol=1e-5, atol=1e-5
  )


@every_process
def test_the_true_x0_keeps_the_noise(process, arrays):
  _, x0, eps = arrays
  x_t = add_noise(process, x0, eps, T)
  np.testing.assert_allclose(
    implied_noise(process, x_t, x0, T), eps, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(
    ddim_step(process, x_t, x0, T, S),
    add_noise(process, x0, eps, S),
    rtol=1e-5,
    atol=1e-5,
  )


@every_process
def test_all_fresh_noise_forgets_the_path(process, arrays):
  x_t, x0, eps = arrays
  np.testing.assert_array_equal(
    renoise_step(process, x_t, x0, T, S, eps, 1.0),
    add_noise(process, x0, eps, S),
  )


@every_process
def test_no_fresh_noise_is_ddim(process, arrays):
  x_t, x0, eps = arrays
  np.testing.assert_allclose(
    renoise_step(process, x_t, x0, T, S, eps, 0.0),
    ddim_step(process, x_t, x0, T, S),
    rtol=1e-6,
  )


@every_process
def test_noise_in_between_keeps_its_variance(process, arrays):
  x_t, x0, eps = arrays
  moved = renoise_step(process, x_t, x0, T, S, eps, 0.6)
  noise = implied_noise(process, moved, x0, S)
  kept = np.asarray(implied_noise(process, x_t, x0, T))
  np.testing.assert_allclose(
    noise, 0.8 * kept + 0.6 * eps, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("fresh", [-0.1, 1.5])
def test_share_of_fresh_noise_is_checked(arrays, fresh):
  x_t, x0, eps = arrays
  with pytest.raises(ValueError, match=r"must lie between 0 and 1"):
    renoise_step(FlowProcess(), x_t, x0, T, S, eps, fresh)


def test_shapes_must_agree(arrays):
  x_t, x0, _ = arrays
  with pytest.raises(AssertionError):
    ddim_step(FlowProcess(), x_t, x0[..., :1], T, S)


@every_process
@pytest.mark.parametrize("fresh", [0.3, 1.0])
def test_score_is_the_gradient_of_the_log_density(process, fresh):
  t, s = np.array([[1.0, 0.8, 0.6], [0.7, 0.4, 0.1]], np.float32)
  draws = np.random.default_rng(1).standard_normal((3, 3, 2, 4))
  x_t, x0, eps = draws.astype(np.float32)
  reached = renoise_step(process, x_t, x0, t, s, eps, fresh)
  _, sigma = levels(process, s, x0)

  @jax.jit
  @jax.grad
  def slope(x0):
    quiet = jnp.zeros_like(eps)
    mean = solvers.renoise_step(process, x_t, x0, t, s, quiet, fresh)
    return jax.scipy.stats.norm.logpdf(reached, mean, fresh * sigma).sum()

  found = renoise_score(process, t, s, eps, fresh)
  wanted = slope(x0)
  np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4)
