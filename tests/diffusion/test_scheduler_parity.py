"""The vp and flow processes against diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion.process import FlowProcess, VPProcess, levels, to_x0
from dollar_jax.diffusion.samplers import sample_teacher
from dollar_jax.diffusion.timesteps import teacher_grid

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch

# t = (i + 1) / 1000 is index i, so that t = 1 is the last, 999
INDEX_TIMES = np.arange(1, 1001, dtype=np.float32) / 1000


def _cogvideox(snr_shift_scale=1.0, zero_snr=True):
  return diffusers.CogVideoXDDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    rescale_betas_zero_snr=zero_snr,
    snr_shift_scale=snr_shift_scale,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
  )


def _ddim(schedule, zero_snr):
  return diffusers.DDIMScheduler(
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=schedule,
    rescale_betas_zero_snr=zero_snr,
  )


def _check_levels(process, scheduler, atol):
  abar = scheduler.alphas_cumprod.numpy().astype(np.float64)
  alpha, sigma = jax.jit(lambda t: (process.alpha(t), process.sigma(t)))(
    INDEX_TIMES
  )
  np.testing.assert_allclose(alpha, abar**0.5, rtol=0, atol=atol)
  # 1 - abar is a small difference of float32 numbers near t = 0
  np.testing.assert_allclose(sigma, (1 - abar) ** 0.5, rtol=0, atol=atol + 1e-5)


@pytest.mark.parametrize("zero_snr", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_levels_equal_cogvideox(scale, zero_snr):
  process = VPProcess(snr_shift_scale=scale, zero_terminal_snr=zero_snr)
  _check_levels(process, _cogvideox(scale, zero_snr), 2e-6)


@pytest.mark.parametrize("zero_snr", [True, False])
def test_levels_equal_ddim(zero_snr):
  options = {"beta_start": 1e-4, "beta_end": 0.02}
  options["zero_terminal_snr"] = zero_snr
  linear = VPProcess(beta_schedule="linear", **options)
  _check_levels(linear, _ddim("linear", zero_snr), 2e-6)
  # diffusers clips the last beta to 0.999, which moves the last levels
  cosine = VPProcess(beta_schedule="cosine", **options)
  _check_levels(cosine, _ddim("squaredcos_cap_v2", zero_snr), 1e-4)


def test_sampler_equals_cogvideox():
  """Ten guided-free steps of a network with v = sin(3 x + i / 200)."""
  noise = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
  scheduler = _cogvideox(3.0)
  scheduler.set_timesteps(10)
  x = torch.from_numpy(noise)
  for i in scheduler.timesteps:
    v = torch.sin(3 * x + float(i) / 200)
    x = scheduler.step(v, int(i), x, return_dict=False)[0]

  process = VPProcess(snr_shift_scale=3.0)

  def predict(x_t, t):
    index = (1000 * t - 1).reshape(-1, 1, 1)
    return to_x0(process, jnp.sin(3 * x_t + index / 200), x_t, t, "v")

  sample = jax.jit(sample_teacher, static_argnums=(0, 1))
  ours = sample(predict, process, noise, teacher_grid(10))
  assert np.std(ours) > 0.1
  np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5)


def test_sampler_equals_flow_match_euler():
  noise = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
  scheduler.set_timesteps(sigmas=np.linspace(1, 0, 11)[:-1])
  grid = teacher_grid(10, 3.0)
  np.testing.assert_allclose(scheduler.sigmas.numpy(), grid, atol=1e-6)
  x = torch.from_numpy(noise)
  for clock in scheduler.timesteps:
    velocity = torch.sin(3 * x + clock / 200)
    x = scheduler.step(velocity, clock, x, return_dict=False)[0]

  process = FlowProcess()

  def predict(x_t, t):
    _, sigma = levels(process, t, x_t)
    return to_x0(process, jnp.sin(3 * x_t + 5 * sigma), x_t, t, "flow")

  sample = jax.jit(sample_teacher, static_argnums=(0, 1))
  ours = sample(predict, process, noise, grid)
  np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5)
