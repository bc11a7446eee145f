"""Samplers against closed-form predictors and plain loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion import samplers, solvers
from dollar_jax.diffusion.guidance import guided
from dollar_jax.diffusion.process import FlowProcess, VPProcess, levels, to_x0
from dollar_jax.diffusion.timesteps import student_grid, teacher_grid

# Compiled as a whole: operation by operation takes several times as long.
sample_student = jax.jit(samplers.sample_student, static_argnums=(0, 1, 4))
sample_teacher = jax.jit(samplers.sample_teacher, static_argnums=(0, 1))
student_inputs = jax.jit(samplers.student_inputs, static_argnums=(0, 1, 4))
student_path = jax.jit(samplers.student_path, static_argnums=(0, 1, 4))
ddim_step = jax.jit(solvers.ddim_step, static_argnums=0)
renoise_step = jax.jit(solvers.renoise_step, static_argnums=(0, 6))

FLOW, VP = FlowProcess(), VPProcess()
every_process = pytest.mark.parametrize(
  "process", [pytest.param(FLOW, id="flow"), pytest.param(VP, id="vp")]
)
every_steps = pytest.mark.parametrize("steps", [1, 2, 4])
MEAN = np.array([1.0, -2.0, 0.5], np.float32)
DEVIATION = np.array([0.5, 1.5, 0.25], np.float32)


def _normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _times(batch, time):
  return np.full(batch, time, np.float32)


@functools.cache
def _gaussian(process):
  """E[x0 | x_t] of data drawn from N(MEAN, DEVIATION²)."""

  def predict(x_t, t):
    alpha, sigma = levels(process, t, x_t)
    gain = alpha * DEVIATION**2 / ((alpha * DEVIATION) ** 2 + sigma**2)
    return MEAN + gain * (x_t - alpha * MEAN)

  return predict


def _straight(x_t, t):
  """The `x0` of the flow whose paths are the lines x0 = m + d * noise.

  Its paths do not cross as long as d is positive, and it depends on x_t.
  """
  alpha, sigma = levels(FLOW, t, x_t)
  noise = (x_t - alpha * MEAN) / (alpha * DEVIATION + sigma)
  return MEAN + DEVIATION * noise


def _wavy(x_t, t):
  return jnp.cos(2 * x_t + t[:, None])


straight, wavy = jax.jit(_straight), jax.jit(_wavy)


@every_process
def test_teacher_reaches_the_datas_distribution(process):
  """The exact flow carries noise z to m + d z: Euler's error must vanish."""
  noise = _normal(0, 64, 3)
  exact = MEAN + DEVIATION * noise

  def error(steps):
    grid = teacher_grid(steps)
    x0 = sample_teacher(_gaussian(process), process, noise, grid)
    return float(np.sqrt(np.mean((np.asarray(x0) - exact) ** 2)))

  coarse, fine, finest = error(25), error(100), error(400)
  assert fine < 0.4 * coarse  # first order: a quarter
  assert finest < 0.4 * fine
  assert finest < 0.01


@every_process
def test_teacher_is_a_plain_loop_of_steps(process):
  noise, grid = _normal(1, 5, 3), teacher_grid(3, 2.0)
  x = noise
  for start, end in itertools.pairwise(grid):
    t, s = _times(5, start), _times(5, end)
    x = ddim_step(process, x, wavy(x, t), t, s)
  sampled = sample_teacher(_wavy, process, noise, grid)
  np.testing.assert_allclose(sampled, x, rtol=1e-5, atol=1e-6)


@every_process
@every_steps
@pytest.mark.parametrize("fresh", [0.0, 0.5, 1.0])
def test_exact_velocity_gives_back_x0(process, steps, fresh):
  """A network that knows x0 speaks in its own tongue, and is understood."""
  kind = {"flow": "flow", "vp": "v"}[process.name]
  wanted = _normal(2, 4, 2, 3, 3, 2)
  noises = _normal(3, steps, *wanted.shape)

  def predict(x_t, t):
    alpha, sigma = levels(process, t, x_t)
    eps = (x_t - alpha * wanted) / sigma
    output = eps - wanted if kind == "flow" else alpha * eps - sigma * wanted
    return to_x0(process, output, x_t, t, kind)

  x0 = sample_student(predict, process, noises, student_grid(steps), fresh)
  np.testing.assert_allclose(x0, wanted, rtol=1e-5, atol=1e-5)


@every_process
@pytest.mark.parametrize("fresh", [0.5, 1.0])
def test_student_is_a_plain_loop_of_steps(process, fresh):
  noises, grid = _normal(4, 3, 5, 3), np.array([1.0, 0.7, 0.2], np.float32)
  inputs, answers = [noises[0]], []
  for k, time in enumerate(grid):
    t = _times(5, time)
    answers.append(wavy(inputs[-1], t))
    if k < 2:
      s = _times(5, grid[k + 1])
      inputs.append(
        renoise_step(
          process, inputs[-1], answers[-1], t, s, noises[k + 1], fresh
        )
      )
  path = student_path(_wavy, process, noises, grid, fresh)
  np.testing.assert_allclose(path[0], np.stack(inputs), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(path[1], np.stack(answers), rtol=1e-5, atol=1e-6)
  short = student_inputs(_wavy, process, noises, grid, fresh)
  np.testing.assert_allclose(short, path[0], rtol=1e-6, atol=1e-7)
  sampled = sample_student(_wavy, process, noises, grid, fresh)
  np.testing.assert_allclose(sampled, answers[-1], rtol=1e-5, atol=1e-6)


@every_steps
@pytest.mark.parametrize(
  "walk, left_out",
  [(sample_student, 0), (student_path, 0), (student_inputs, 1)],
)
def test_student_is_asked_once_at_every_time_of_its_grid(steps, walk, left_out):
  asked = []

  def predict(x_t, t):
    jax.debug.callback(lambda t: asked.append(float(t[0])), t, ordered=True)
    return x_t

  grid = student_grid(steps)
  jax.block_until_ready(walk(predict, FLOW, _normal(5, steps, 2, 3), grid))
  jax.effects_barrier()
  assert asked == grid.tolist()[: steps - left_out]


def test_a_video_depends_on_its_own_noise_only():
  noises, grid = _normal(6, 2, 6, 3), student_grid(2)
  together = sample_student(_wavy, FLOW, noises, grid)
  alone = sample_student(_wavy, FLOW, noises[:, 3:4], grid)
  np.testing.assert_array_equal(alone, together[3:4])


@pytest.mark.parametrize("jump", [2, 5, 10])
def test_one_jump_on_a_straight_path_is_many_small_steps(jump):
  grid = teacher_grid(10, 3.0)
  x = start = _normal(7, 8, 3)
  for here, there in itertools.pairwise(grid[: jump + 1]):
    t, s = _times(8, here), _times(8, there)
    x = ddim_step(FLOW, x, straight(x, t), t, s)
  t, s = _times(8, grid[0]), _times(8, grid[jump])
  jumped = ddim_step(FLOW, start, straight(start, t), t, s)
  assert float(np.abs(x - start).max()) > 0.1
  np.testing.assert_allclose(jumped, x, rtol=1e-4, atol=1e-5)
  # where paths bend, they part
  bent = ddim_step(FLOW, start, jax.jit(_gaussian(FLOW))(start, t), t, s)
  assert float(np.abs(bent - x).max()) > 0.1


def test_any_prompt_runs_the_same_compiled_sampler():
  traces = []

  def network(x_t, t, text, mask):
    traces.append(x_t.shape)
    words = jnp.where(mask[..., None], text, 0.0).sum((1, 2))
    return jnp.tanh(x_t * t[:, None] + words[:, None])

  @jax.jit
  def sample(text, mask, noise):
    null = jnp.zeros_like(text[0]), jnp.zeros_like(mask[0])
    predict = guided(network, text, mask, *null, 4.0)
    return samplers.sample_teacher(predict, FLOW, noise, teacher_grid(6))

  noise = _normal(8, 2, 3)
  videos = []
  for prompt in range(3):
    mask = np.arange(4) < prompt + np.array([[1], [2]])
    videos.append(sample(_normal(prompt, 2, 4, 5), mask, noise))
  assert len(traces) == 1  # one trace serves six steps and three prompts
  assert traces[0] == (4, 3)
  assert float(np.abs(videos[0] - videos[1]).max()) > 1e-3
