"""The networks' updates, on a flow whose answers are known in closed form.

`Line` carries noise z straight to `shift + gain z + words * text`. What needs
a true network runs on a tiny Wan.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from dollar_jax.diffusion.process import FlowProcess, levels
from dollar_jax.diffusion.solvers import implied_noise, renoise_step
from dollar_jax.losses.reward import reward_force
from dollar_jax.losses.vsd import vsd_loss
from dollar_jax.models.denoiser import Denoiser, make_wan
from dollar_jax.models.wan import WanConfig
from dollar_jax.train import optim, state
from dollar_jax.train.config import DistillConfig, OptimizerConfig
from dollar_jax.train.score_step import make_score_step
from dollar_jax.train.student_step import Student, make_student_step
from dollar_jax.train.teacher_step import make_teacher_step

LATENT, TEXT = (1, 2, 2, 3), (2, 4)
SGD = OptimizerConfig()  # what the steps read of it: no average, one part


@dataclasses.dataclass(frozen=True)
class LineConfig:
  dtype: str = "float32"


class Line(nn.Module):
  config: LineConfig = LineConfig()

  @nn.compact
  def __call__(self, x, clock, text, text_mask=None):
    shift, gain, words = (
      self.param(name, nn.initializers.zeros, (1,))
      for name in ("shift", "gain", "words")
    )
    said = jnp.where(text_mask[..., None], text, 0.0).sum((1, 2))
    t, said = (a.reshape(-1, 1, 1, 1, 1) for a in (clock / 1000, said))
    end = shift + words * said
    noise = (x - (1 - t) * end) / ((1 - t) * gain + t)
    return noise - (end + gain * noise)


LINE = Denoiser(Line(), FlowProcess(), "flow")


def _line(shift=1.0, gain=0.5, words=0.25):
  values = {"shift": shift, "gain": gain, "words": words}
  return {name: np.full(1, value, np.float32) for name, value in values.items()}


def _batch(size, latent=LATENT, text=TEXT):
  rng = np.random.default_rng(0)
  return {
    "latents": rng.standard_normal((size, *latent)).astype(np.float32),
    "text": rng.standard_normal((size, *text)).astype(np.float32),
    "text_mask": np.arange(text[0]) < np.arange(1, size + 1)[:, None],
  }


def _null(text=TEXT):
  null = np.zeros(text, np.float32)
  return {"null_text": null, "null_mask": np.zeros(text[0], bool)}


def _student(denoiser=LINE, **changes):
  return Student(denoiser, DistillConfig(**changes))


DESCENT = optax.sgd(1.0)


@functools.cache
def _step(make, *args, **kwargs):
  return jax.jit(make(*args, SGD, **kwargs))


def _update(make, params, frozen, batch, *args, optimizer=DESCENT, **kwargs):
  """One compiled update by plain gradient descent; (state, metrics)."""
  step = _step(make, *args, optimizer, **kwargs)
  start = state.create(params, optimizer, ema=False)
  return step(start, frozen, batch, jax.random.key(7))


# Compiled as a whole: operation by operation takes several times as long.
# Each is a function of (student, params, batch, key).
inputs = jax.jit(Student.inputs, static_argnums=0)
samples = jax.jit(Student.samples, static_argnums=0)
transitions = jax.jit(Student.transitions, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def predict(student, params, x_t, t, *text):
  return student.predict(params, *text)(x_t, t)


noise_of = jax.jit(implied_noise, static_argnums=0)


# What the student is given, and what it makes of it.


@pytest.mark.parametrize("kind", ["data", "simulate"])
@pytest.mark.parametrize("size, steps", [(4, 1), (4, 2), (5, 3), (2, 4)])
def test_samples_are_the_answers_to_the_inputs_with_their_prompts(
  kind, size, steps
):
  student = _student(inputs=kind, num_steps=steps)
  params, batch, key = _line(), _batch(size), jax.random.key(1)
  x_t, t, *text = inputs(student, params, batch, key)
  x0, *sampled_text = samples(student, params, batch, key)
  assert x_t.shape == x0.shape == batch["latents"].shape
  wanted = predict(student, params, x_t, t, *text)
  np.testing.assert_allclose(x0, wanted, rtol=1e-5, atol=1e-6)
  rows = student.prompt_rows(size)
  for name, given, sampled in zip(
    ("text", "text_mask"), text, sampled_text, strict=True
  ):
    np.testing.assert_array_equal(given, batch[name][rows])
    np.testing.assert_array_equal(sampled, batch[name][rows])


def test_simulated_inputs_come_from_all_steps_equally():
  student = _student(num_steps=3)
  _, t, *_ = inputs(student, _line(), _batch(6), jax.random.key(2))
  np.testing.assert_array_equal(t, np.tile(student.grid, 2))


@pytest.mark.parametrize("fresh", [0.0, 0.6])
def test_inputs_are_those_of_a_plain_rollout(fresh):
  grid, flow = np.array([1.0, 0.8, 0.3], np.float32), FlowProcess()
  params, batch, key = _line(), _batch(6), jax.random.key(3)

  def roll(fresh):
    student = _student(grid=tuple(grid.tolist()), fresh_noise=fresh)
    x_t, _, *text = map(np.asarray, inputs(student, params, batch, key))

    def answer(x_t, t):
      own = (a[::3] for a in text)
      return np.asarray(predict(student, params, x_t, t, *own))

    return np.swapaxes(x_t.reshape(2, 3, *LATENT), 0, 1), answer

  times = [np.full(2, t) for t in grid]
  shown, answer = roll(1.0)  # where all noise is fresh, it can be read off
  drawn = [
    noise_of(flow, shown[k], answer(shown[k - 1], times[k - 1]), times[k])
    for k in (1, 2)
  ]
  x = shown[0]
  steps, _ = roll(fresh)
  np.testing.assert_array_equal(steps[0], x)
  for k in (1, 2):
    t, s = grid[k - 1], grid[k]
    x0 = answer(x, times[k - 1])
    kept = (x - (1 - t) * x0) / t
    noise = np.sqrt(1 - fresh**2) * kept + fresh * np.asarray(drawn[k - 1])
    x = (1 - s) * x0 + s * noise
    np.testing.assert_allclose(steps[k], x, rtol=1e-4, atol=1e-5)


def test_fresh_noise_is_standard_normal_and_new():
  student = _student(num_steps=2, fresh_noise=1.0)
  batch = _batch(64, latent=(2, 4, 4, 3))
  x_t, t, *text = inputs(student, _line(), batch, jax.random.key(4))
  x0 = predict(student, _line(), x_t, t, *text)
  x_t, t, x0 = map(np.asarray, (x_t, t, x0))
  fresh = noise_of(FlowProcess(), x_t[1::2], x0[::2], t[1::2])
  fresh = np.asarray(fresh)
  for noise in (x_t[::2], fresh):
    assert float(noise.mean()) == pytest.approx(0, abs=0.06)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
  assert float(np.mean(fresh * x_t[:32])) == pytest.approx(0, abs=0.06)


def test_data_inputs_are_noised_latents_at_the_grids_times():
  student = _student(inputs="data", grid=(1.0, 0.5, 0.25))
  batch, key = _batch(300), jax.random.key(5)
  x_t, t, *_ = map(np.asarray, inputs(student, _line(), batch, key))
  times, counts = np.unique(t, return_counts=True)
  assert times.tolist() == [0.25, 0.5, 1.0]
  assert counts.min() > 60  # of 100 each, 4.9 deviations
  # the same noise on other latents: what differs is (1 - t) of the latents
  other = {**batch, "latents": 3 * batch["latents"]}
  moved = np.asarray(inputs(student, _line(), other, key)[0]) - x_t
  alpha = 1 - t.reshape(-1, 1, 1, 1, 1)
  np.testing.assert_allclose(moved, 2 * alpha * batch["latents"], atol=1e-5)
  noise = noise_of(FlowProcess(), x_t, batch["latents"], t)
  assert float(np.std(noise)) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("kind", ["data", "simulate"])
def test_no_gradient_runs_through_what_the_student_is_given(kind):
  student, batch = _student(inputs=kind, num_steps=2), _batch(4)

  def total(params):
    key = jax.random.key(6)
    x_t, *_ = student.inputs(params, batch, key)
    x0, *_ = student.samples(params, batch, key)
    return jnp.sum(x_t) + jnp.sum(x0)

  slopes = jax.jit(jax.grad(total))(_line())
  assert all(float(slope[0]) == 0 for slope in slopes.values())


def test_grid_is_hand_made_or_even_with_a_shift():
  shifted = dataclasses.replace(LINE, shift=3.0)
  np.testing.assert_allclose(_student(shifted, num_steps=2).grid, [1, 0.75])
  own = _student(shifted, num_steps=2, grid_shift=1.0)  # not the model's
  np.testing.assert_allclose(own.grid, [1, 0.5])
  np.testing.assert_allclose(
    _student(shifted, grid=(1.0, 0.4)).grid, [1, 0.4], rtol=1e-6
  )
  with pytest.raises(ValueError, match="must start at 1"):
    _ = _student(grid=(0.9,)).grid


# The three losses.


def _frozen(teacher, **others):
  return {"teacher": teacher, **_null(), **others}


def test_straight_teacher_has_nothing_left_to_teach():
  student = _student(vsd_weight=0.0, cd_weight=1.0, guidance=1.0, cd_grid=10)
  frozen, batch = _frozen(_line()), _batch(16)
  after, metrics = _update(make_student_step, _line(), frozen, batch, student)
  assert float(metrics["consistency"]) < 1e-6
  np.testing.assert_allclose(after.params["gain"], 0.5, atol=1e-3)
  _, metrics = _update(
    make_student_step, _line(gain=0.8), frozen, batch, student
  )
  assert float(metrics["consistency"]) > 0.05


@pytest.mark.parametrize("jump, at_data", [(4, True), (2, False)])
def test_at_data_the_target_is_the_jumped_latent_itself(jump, at_data):
  """A jump over the whole grid ends there: the average has no say.

  The network is said to predict x0: flow's velocity counts for nothing at 0.
  """
  student = _student(
    dataclasses.replace(LINE, prediction="x0"),
    vsd_weight=0.0,
    cd_weight=1.0,
    guidance=1.0,
    cd_grid=4,
    cd_jump=jump,
  )
  optimizer = optax.sgd(0.0)
  step = jax.jit(make_student_step(student, optimizer, SGD))
  start = state.create(_line(), optimizer, ema=True)
  start = start.replace(ema=_line(shift=100.0))
  _, metrics = step(start, _frozen(_line()), _batch(8), jax.random.key(0))
  assert (float(metrics["consistency"]) < 1e-5) == at_data


def test_vsd_pulls_the_student_to_the_teacher():
  """Fake score and student agree, and the teacher's data lie further up."""
  student = _student(cd_weight=0.0, guidance=1.0)
  params = _line(shift=0.0, words=0.0)
  for shift in (2.0, -2.0):
    frozen = _frozen(_line(shift, words=0.0), fake_score=params)
    after, metrics = _update(
      make_student_step, params, frozen, _batch(8), student
    )
    assert float(metrics["grad_norm"]) > 0.1
    assert float(after.params["shift"][0]) * shift > 0.1


def test_guidance_exaggerates_the_prompt():
  """Null text is no words: what words move is moved further by w."""
  params = _line(words=0.0)
  batch = {**_batch(8), "text": np.ones((8, *TEXT), np.float32)}
  frozen = _frozen(_line(shift=1.0, words=0.1), fake_score=params)
  moved = []
  for scale in (0.0, 1.0, 3.0):
    student = _student(cd_weight=0.0, guidance=scale)
    after, metrics = _update(make_student_step, params, frozen, batch, student)
    moved.append(float(after.params["shift"][0] - 1))
    if scale == 0:
      assert float(metrics["vsd_force"]) < 1e-5
  assert abs(moved[0]) < 1e-5 < 0.1 < moved[1] < moved[2]


class Sum(nn.Module):
  """A latent reward that likes every element of the latent to be large."""

  def __call__(self, x0, text, text_mask):
    return x0.mean((1, 2, 3, 4))


def test_reward_alone_needs_neither_teacher_nor_fake_score():
  student = _student(
    vsd_weight=0.0, cd_weight=0.0, reward_weight=2.0, num_steps=1
  )
  params, batch = _line(), _batch(4)
  frozen = {"latent_reward": {}, **_null()}
  after, metrics = _update(
    make_student_step, params, frozen, batch, student, latent_reward=Sum()
  )
  # each of the twelve elements of a latent has a slope of 1/12
  slope = np.full((4, *LATENT), 1 / 12, np.float32)
  force = float(np.mean(jax.jit(reward_force)(slope)))
  assert float(metrics["reward_force"]) == pytest.approx(force, rel=1e-4)
  # from pure noise, every sample's end moves by the shift: slope 1, weight 2
  moved = float(after.params["shift"][0] - params["shift"][0])
  assert moved == pytest.approx(2 * force, rel=1e-4)
  key, *_ = jax.random.split(jax.random.key(7), 3)
  x0, *_ = samples(student, params, batch, key)
  assert float(metrics["latent_reward"]) == pytest.approx(
    float(np.mean(x0)), abs=1e-5
  )


# The policy gradient.


@pytest.mark.parametrize("fresh", [0.5, 1.0])
def test_transitions_come_with_the_gradient_of_their_log_density(fresh):
  student = _student(num_steps=3, grid_shift=2.0, fresh_noise=fresh)
  params, batch = _line(), _batch(5)
  x0, path = transitions(student, params, batch, jax.random.key(4))
  x_t, t, score, *text = map(np.asarray, path)
  assert x0.shape == (3, *LATENT)  # of every second prompt
  np.testing.assert_array_equal(text[0][1], batch["text"][::2])
  process, s = LINE.process, np.full(3, student.grid[1])
  asked = x_t[0], t[0], text[0][0], text[1][0]
  answer = predict(student, params, *asked)

  @jax.jit
  @jax.grad
  def slope(answer):
    _, sigma = levels(process, s, answer)
    quiet = jnp.zeros_like(answer)
    mean = renoise_step(process, x_t[0], answer, t[0], s, quiet, fresh)
    return jax.scipy.stats.norm.logpdf(x_t[1], mean, fresh * sigma).sum()

  wanted = slope(answer)
  np.testing.assert_allclose(score[0], wanted, rtol=2e-3, atol=1e-3)
  np.testing.assert_allclose(
    predict(student, params, *asked), answer, rtol=1e-6
  )


def test_policy_gradient_alone_moves_the_answers_along_the_force():
  weights = {"vsd_weight": 0.0, "cd_weight": 0.0, "ddpo_weight": 3.0}
  student = _student(num_steps=3, **weights)
  params, batch = _line(), _batch(4)
  _, path = transitions(student, params, batch, jax.random.key(4))
  x_t, t, _, *text = (np.asarray(a)[0] for a in path)
  push = np.random.default_rng(3).standard_normal(x_t.shape, np.float32)
  rows = {**batch, "policy": (x_t, t, push, *text)}
  after, _ = _update(make_student_step, params, _null(), rows, student)

  def surrogate(params):
    answer = student.predict(params, *text)(x_t, t)
    return -3.0 * jnp.mean(push * answer)

  slopes = jax.device_get(jax.jit(jax.grad(surrogate))(params))
  for name, slope in slopes.items():
    moved = np.asarray(after.params[name]) - params[name]
    np.testing.assert_allclose(moved, -slope, rtol=1e-4, atol=1e-7)
    assert abs(float(slope[0])) > 1e-4


# A true network.

WAN = make_wan(
  WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=3,
    out_channels=3,
    text_dim=4,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
    scan=False,
  )
)


@pytest.fixture(scope="module")
def wan_params():
  init = jax.jit(lambda key: WAN.init(key, LATENT, TEXT))
  return jax.device_get(init(jax.random.key(0)))


def test_fake_score_equal_to_teacher_moves_nothing(wan_params):
  student = _student(WAN, cd_weight=0.0, guidance=1.0, inputs="data")
  frozen = _frozen(wan_params, fake_score=wan_params)
  params = jax.tree.map(lambda p: np.float32(0.9) * p, wan_params)
  after, metrics = _update(
    make_student_step,
    params,
    frozen,
    _batch(4),
    student,
    optimizer=optax.adam(1e-2),
  )
  assert float(metrics["vsd_force"]) == 0.0
  assert float(metrics["grad_norm"]) == 0.0
  assert int(after.updates) == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, params)


def _flops(fn, *args):
  """Multiplications and additions of all matrix products of a function."""

  def count(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
      times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
      total += times * sum(map(count, jaxprs_in_params(eqn.params)))
      if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        inner = math.prod(shape[axis] for axis in contracted)
        total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
    return total

  return count(jax.make_jaxpr(fn)(*args).jaxpr)


def test_a_term_that_is_off_costs_nothing(wan_params):
  """Counts the network calls of a step by their matrix products."""
  batch, key = _batch(4), jax.random.key(0)
  x_t, t = batch["latents"], jnp.ones(4)
  text = batch["text"], batch["text_mask"]

  def loss(params):
    return vsd_loss(WAN.predict_x0(params, x_t, t, *text), x_t)

  forward = _flops(WAN.predict_x0, wan_params, x_t, t, *text)
  trained = _flops(jax.value_and_grad(loss), wan_params)
  assert forward > 1e5
  assert 2.5 * forward < trained < 3.5 * forward

  def step_flops(*frozen_names, **weights):
    student = _student(WAN, inputs="data", num_steps=2, **weights)
    step = make_student_step(student, optax.sgd(1.0), SGD)
    start = state.create(wan_params, optax.sgd(1.0), ema=False)
    frozen = dict.fromkeys(frozen_names, wan_params) | _null()
    return _flops(step, start, frozen, batch, key)

  vsd = {"vsd_weight": 1.0, "cd_weight": 0.0}
  cd = {"vsd_weight": 0.0, "cd_weight": 1.0}
  both = ("teacher", "fake_score")
  # fake score and both branches of the teacher; or those and the average
  assert step_flops(*both, **vsd) == trained + 3 * forward
  assert step_flops("teacher", **cd) == trained + 3 * forward
  assert step_flops(*both, **vsd, guidance=1.0) == trained + 2 * forward
  assert step_flops(*both, cd_weight=0.5) == 2 * (trained + 3 * forward)


# The teacher's and the fake score's updates.


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_teacher_hears_the_prompt_or_where_it_is_dropped_the_null(dropout):
  """Data that words determine: a network that hears them has no error."""
  params, batch = _line(gain=0.0, words=0.5), _batch(16)
  null = {
    "null_text": np.full(TEXT, 0.7, np.float32),
    "null_mask": np.array([True, False]),
  }
  prompts = np.where(batch["text_mask"][..., None], batch["text"], 0.0)
  said = {0.0: prompts.sum((1, 2)), 1.0: np.full(16, 4 * 0.7, np.float32)}

  def make(optimizer, config):
    return make_teacher_step(LINE, optimizer, config, caption_dropout=dropout)

  for heard, words in said.items():
    end = (1 + 0.5 * words).reshape(-1, 1, 1, 1, 1)
    end = np.broadcast_to(end, batch["latents"].shape).astype(np.float32)
    batch["latents"] = end
    _, metrics = _update(make, params, null, batch)
    assert (float(metrics["loss"]) < 1e-3) == (heard == dropout)


def test_fake_score_fits_the_students_samples():
  """A student that always makes the same video is known without error."""
  student, params = _student(num_steps=2), _line(gain=0.0, words=0.0)
  frozen, rest = {"student": params}, (_batch(8), student)
  descent = optax.sgd(1e-2)

  def update(params):
    return _update(make_score_step, params, frozen, *rest, optimizer=descent)

  _, metrics = update(params)
  assert float(metrics["loss"]) < 1e-3
  after, metrics = update(_line(shift=1.5, gain=0.0, words=0.0))
  assert float(metrics["loss"]) > 0.1
  assert float(after.params["shift"][0]) < 1.5


# State: skipped updates, microbatches, the average.


@pytest.fixture(scope="module")
def adam_step():
  """A teacher's update by Adam, and its first state."""
  config = OptimizerConfig(learning_rate=0.1)
  optimizer = optim.make_optimizer(config, optim.make_schedule(config, 10))
  step = jax.jit(make_teacher_step(LINE, optimizer, SGD, 0.0))
  return step, state.create(_line(), optimizer, ema=True)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_batch_is_skipped_and_counted(poison, adam_step):
  step, first = adam_step
  good, key = _batch(4), jax.random.key(0)
  bad = {**good, "latents": good["latents"].copy()}
  bad["latents"][2, 0, 1, 1, 0] = poison
  before, _ = step(first, _null(), good, key)
  after = before
  for row in (1, 2):
    after, metrics = step(after, _null(), bad, key)
    assert int(metrics["skipped_in_row"]) == row
  counts = [int(getattr(after, n)) for n in ("updates", "skipped")]
  assert counts == [1, 2]
  for name in ("params", "ema", "opt_state"):
    old, new = getattr(before, name), getattr(after, name)
    jax.tree.map(np.testing.assert_array_equal, new, old)
  after, metrics = step(after, _null(), good, key)
  counts = [int(getattr(after, n)) for n in ("updates", "skipped")]
  assert (counts, int(metrics["skipped_in_row"])) == ([2, 2], 0)
  assert float(after.params["shift"][0]) != float(before.params["shift"][0])


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_give_the_gradient_of_the_whole(parts):
  rng = np.random.default_rng(0)
  weights = {"w": rng.standard_normal((3, 2)).astype(np.float32)}
  batch = {"x": rng.standard_normal((8, 3)).astype(np.float32)}

  def loss_fn(params, batch, key):
    error = jnp.tanh(batch["x"] @ params["w"]) - batch["x"][:, :2]
    return jnp.mean(error**2), {"mean": batch["x"].mean()}

  gradients = jax.jit(
    functools.partial(state.gradients, loss_fn), static_argnums=3
  )
  whole, split = (
    gradients(weights, batch, jax.random.key(0), n) for n in (1, parts)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    split,
    whole,
  )
  assert float(np.abs(whole[2]["w"]).max()) > 1e-2


def test_microbatches_draw_noise_of_their_own():
  def loss_fn(params, batch, key):
    draw = jax.random.normal(key)
    return params["w"] * draw, {"square": draw**2}

  loss, metrics, _ = jax.jit(
    lambda *args: state.gradients(loss_fn, *args, jax.random.key(0), 2)
  )({"w": np.float32(1)}, np.zeros(2, np.float32))
  # equal draws would make the mean's square the mean of squares
  assert abs(float(metrics["square"] - loss**2)) > 1e-3


def test_average_is_warmed_up():
  """Decay 1/10, 2/11, 3/12, … until it has reached the one asked for."""
  update_ema = jax.jit(optim.update_ema, static_argnums=2)
  for updates, decay in [(0, 0.1), (1, 2 / 11), (90, 0.91), (9000, 0.95)]:
    zeros, ones = ({"w": np.full(2, x, np.float32)} for x in (0, 1))
    moved = update_ema(ones, zeros, 0.95, np.int32(updates))
    np.testing.assert_allclose(moved["w"], np.full(2, decay), rtol=1e-5)


def test_average_follows_the_updated_parameters():
  optimizer = optax.sgd(1.0)
  one = {"w": np.ones(2, np.float32)}
  here = state.create(one, optimizer, ema=True)
  wanted = np.ones(2)
  apply = jax.jit(
    lambda here: state.apply_gradients(here, 0.0, one, optimizer, 0.999)
  )
  for n in range(3):
    here, _ = apply(here)
    wanted += (1 - (1 + n) / (10 + n)) * (-n - wanted)  # parameters are -n
    np.testing.assert_allclose(here.averaged["w"], wanted, rtol=1e-5)
  without = state.create(one, optimizer, ema=False)
  assert without.averaged is without.params


# Optimisers and schedules.

PEAK = 0.2


def _schedule(**changes):
  config = OptimizerConfig(learning_rate=PEAK, **changes)
  schedule = optim.make_schedule(config, 100)
  return lambda n: float(schedule(n)) / PEAK


def test_schedules_end_where_they_should():
  kinds = ("constant", "cosine", "linear")
  constant, cosine, linear = (_schedule(schedule=kind) for kind in kinds)
  at = (0, 25, 50, 100)
  assert [constant(n) for n in at] == pytest.approx([1, 1, 1, 1])
  quarter = (1 + math.cos(math.pi / 4)) / 2
  assert [cosine(n) for n in at] == pytest.approx([1, quarter, 0.5, 0])
  assert [linear(n) for n in at] == pytest.approx([1, 0.75, 0.5, 0])


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_warm_up_begins_above_0_and_ends_at_the_peak(kind):
  schedule = _schedule(schedule=kind, warmup_steps=20)
  ramp = [schedule(n) for n in range(21)]
  assert ramp[0] == pytest.approx(1 / 20)
  assert ramp[20] == pytest.approx(1)
  np.testing.assert_allclose(np.diff(ramp), (1 - 1 / 20) / 20, rtol=1e-4)
  if kind != "constant":
    assert schedule(60) == pytest.approx(0.5)  # half way down
    assert schedule(100) == pytest.approx(0)


@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_schedules_are_those_of_optax(kind, warmup):
  rest = 100 - warmup
  tail = {
    "constant": optax.constant_schedule(PEAK),
    "cosine": optax.cosine_decay_schedule(PEAK, rest),
    "linear": optax.linear_schedule(PEAK, 0.0, rest),
  }[kind]
  ramp = optax.linear_schedule(PEAK / max(warmup, 1), PEAK, max(warmup, 1))
  theirs = optax.join_schedules([ramp, tail], [warmup]) if warmup else tail
  config = OptimizerConfig(
    learning_rate=PEAK, schedule=kind, warmup_steps=warmup
  )
  counts = jnp.arange(110)
  ours = jax.vmap(optim.make_schedule(config, 100))(counts)
  want = jnp.broadcast_to(jax.vmap(theirs)(counts), counts.shape)
  np.testing.assert_allclose(ours, want, rtol=1e-6, atol=1e-7 * PEAK)


def test_the_schedule_is_no_constant_of_a_step():
  def lowered(rate, steps):
    config = OptimizerConfig(learning_rate=rate, schedule="cosine")
    make = functools.partial(make_teacher_step, LINE, caption_dropout=0.0)
    schedule = optim.make_schedule(config, steps)
    optimizer = optim.make_optimizer(config, schedule)
    first = state.create(_line(), optimizer, ema=False)
    frozen = _null() | {"schedule": schedule}
    step = jax.jit(optim.scheduled(make, config))
    return step.lower(first, frozen, _batch(4), jax.random.key(0)).as_text()

  assert lowered(0.1, 10) == lowered(0.3, 20)


def test_bad_schedules_are_refused():
  with pytest.raises(ValueError, match="between 0 and the run's 100 steps"):
    _schedule(warmup_steps=101)
  with pytest.raises(ValueError, match="schedule is 'step'; use one of"):
    _schedule(schedule="step")


PARAMS = {
  "layer": {"kernel": np.ones((6, 4)), "bias": np.ones(4)},
  "stack": {"kernel": np.ones((2, 5, 3))},
  "conv": {"kernel": np.ones((1, 3, 3, 2))},
  "norm": {"weight": np.ones(4)},
}
PARAMS = jax.tree.map(np.float32, PARAMS)


def _gradients(scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: (scale * rng.standard_normal(p.shape)).astype(np.float32),
    PARAMS,
  )


def _run(config, gradients):
  optimizer = optim.make_optimizer(config, optim.make_schedule(config, 10))

  @jax.jit
  def update(grads, opt_state, params):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, opt_state = PARAMS, jax.jit(optimizer.init)(PARAMS)
  for grads in gradients:
    params, opt_state = update(grads, opt_state, params)
  return jax.device_get((params, opt_state))


def _adamw(gradients, lr, b1, b2, decay, clip):
  """AdamW with clipping, written out; matrices alone decay."""
  leaves, tree = jax.tree.flatten(PARAMS)
  names = [p[0][-1].key for p in jax.tree_util.tree_leaves_with_path(PARAMS)]
  params = [np.asarray(p, np.float64) for p in leaves]
  m, v = ([np.zeros_like(p) for p in params] for _ in range(2))
  for n, grads in enumerate(gradients, 1):
    grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    for i, g in enumerate(grads):
      g = g * min(1, clip / norm)
      m[i] = b1 * m[i] + (1 - b1) * g
      v[i] = b2 * v[i] + (1 - b2) * g**2
      change = m[i] / (1 - b1**n) / (np.sqrt(v[i] / (1 - b2**n)) + 1e-8)
      if names[i] == "kernel":
        change = change + decay * params[i]
      params[i] = params[i] - lr * change
  return jax.tree.unflatten(tree, params)


def test_adamw_is_the_textbooks_with_clipping():
  config = OptimizerConfig(
    learning_rate=0.05, b1=0.8, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  # a large gradient, clipped, weighs as much as the small ones after it
  gradients = [_gradients(s, i) for i, s in enumerate((50.0, 0.05, 0.1))]
  params, _ = _run(config, gradients)
  wanted = _adamw(gradients, 0.05, 0.8, 0.95, 0.1, 1.0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, wanted
  )
  free, _ = _run(dataclasses.replace(config, clip_norm=0.0), gradients)
  far = np.abs(free["layer"]["kernel"] - params["layer"]["kernel"])
  assert far.max() > 1e-2


def test_decay_is_on_matrices_only():
  config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
  for name in ("adamw", "muon"):
    params, _ = _run(dataclasses.replace(config, name=name), [_gradients(0.0)])
    for group in ("layer", "stack"):
      np.testing.assert_allclose(params[group]["kernel"], 0.95, rtol=1e-5)
    np.testing.assert_array_equal(params["layer"]["bias"], np.ones(4))
    np.testing.assert_array_equal(params["norm"]["weight"], np.ones(4))


def test_muon_turns_each_matrix_and_leaves_the_rest_to_adam():
  config = OptimizerConfig(name="muon", learning_rate=0.01, clip_norm=0.0)
  gradients = _gradients()
  # one matrix of the stack has a far larger gradient than the other
  gradients["stack"]["kernel"][1] *= 1e3
  params, _ = _run(config, [gradients])
  change = jax.tree.map(lambda a, b: (b - a) / 0.01, params, PARAMS)
  for matrix in (change["layer"]["kernel"], *change["stack"]["kernel"]):
    singular = np.linalg.svd(matrix, compute_uv=False)
    wanted = 0.2 * math.sqrt(max(matrix.shape))  # AdamW's root mean square
    assert singular.max() < 1.3 * wanted
    assert singular.min() > 0.6 * wanted
  # Adam's first step is the sign of the gradient, whatever its size
  for group, name in [
    ("layer", "bias"),
    ("conv", "kernel"),
    ("norm", "weight"),
  ]:
    size = np.abs(change[group][name])
    np.testing.assert_allclose(size, size.flat[0], rtol=1e-3)
    signs = np.sign(change[group][name])
    np.testing.assert_array_equal(signs, np.sign(gradients[group][name]))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_first_moment_may_be_kept_in_half(name):
  config = OptimizerConfig(name=name, moment_dtype="bfloat16")
  _, opt_state = _run(config, [_gradients()])
  half = [x for x in jax.tree.leaves(opt_state) if x.dtype == jnp.bfloat16]
  assert len(half) == len(jax.tree.leaves(PARAMS))
  shapes = sorted(x.shape for x in half)
  assert shapes == sorted(p.shape for p in jax.tree.leaves(PARAMS))


def test_unknown_optimisers_are_refused():
  with pytest.raises(ValueError, match="use 'adamw' or 'muon'"):
    optim.make_optimizer(
      OptimizerConfig(name="lion"), optax.constant_schedule(0.1)
    )
  with pytest.raises(ValueError, match="use 'float32' or 'bfloat16'"):
    optim.make_optimizer(
      OptimizerConfig(moment_dtype="float16"), optax.constant_schedule(0.1)
    )
