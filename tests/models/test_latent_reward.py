"""The latent reward model: shapes, what each kind can see, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from dollar_jax.models import latent_reward
from dollar_jax.models.latent_reward import LatentReward, LatentRewardConfig

TEXT = np.random.default_rng(1).standard_normal((2, 3, 5), np.float32)
MASK = np.array([[True, True, False], [True, False, False]])


def _latents(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _init(module, *inputs):
  """Variables as `module.init` makes them, without its compilation."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  rng = np.random.default_rng(2)

  def draw(path, leaf):
    if path[-1].key == "bias":
      return np.zeros(leaf.shape, np.float32)
    fan_in = np.prod(leaf.shape[:-1])
    return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _make(kind="image", text=False, dtype="float32"):
  """The model as a jitted function of (x0, text, mask), and its variables."""
  config = LatentRewardConfig(
    kind, width=8, depth=2, text_conditioned=text, dtype=dtype
  )
  module = LatentReward(config)
  variables = _init(module, _latents(2, 2, 4, 4, 6), TEXT, MASK)
  return jax.jit(module.apply), variables


@functools.partial(jax.jit, static_argnums=0)
def _members(module, variables, x0):
  return module.apply(variables, x0, method="members")


@pytest.fixture(params=["image", "video"])
def kind(request):
  return request.param


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
  "shape", [(2, 2, 4, 4, 6), (2, 1, 1, 1, 6), (2, 32, 24, 40, 16)]
)
def test_one_float32_a_sample_at_every_latent_shape(kind, text, shape):
  module = LatentReward(
    LatentRewardConfig(kind, width=8, depth=4, text_conditioned=text)
  )
  x0 = jax.ShapeDtypeStruct(shape, jnp.float32)
  result, variables = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, TEXT, MASK), x0
  )
  assert (result.shape, result.dtype) == ((2,), jnp.float32)
  assert set(variables) == {"params"}


def test_odd_and_long_axes_are_averaged_evenly():
  """On a constant latent pooling changes nothing, at the edges neither."""
  x = np.broadcast_to(np.arange(3, dtype=np.float32), (1, 9, 11, 7, 3))
  for time, frames in ((True, 5), (False, 9)):
    half = np.asarray(jax.jit(latent_reward._halve, static_argnums=1)(x, time))
    assert half.shape == (1, frames, 6, 7, 3)
    np.testing.assert_array_equal(half[0, -1, -1, -1], [0, 1, 2])


def test_size_at_the_digits_latent(kind):
  module = LatentReward(LatentRewardConfig(kind))
  x0 = jax.ShapeDtypeStruct((2, 2, 4, 4, 48), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x0)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert 100_000 <= count <= 300_000


def test_samples_do_not_see_each_other():
  apply, variables = _make()
  x0 = _latents(2, 2, 4, 4, 6)
  both = apply(variables, x0)
  swapped = apply(variables, x0[::-1])
  np.testing.assert_allclose(swapped[::-1], both, rtol=1e-5, atol=1e-6)
  assert abs(float(both[0] - both[1])) > 1e-3


def test_only_a_video_model_mixes_frames(kind):
  apply, variables = _make(kind)
  x0 = _latents(2, 2, 4, 4, 6)
  # each frame twice: what a frame-wise model makes of a frame on its own
  alone = [apply(variables, x0[:, [i, i]]) for i in range(2)]
  same = np.allclose(
    apply(variables, x0), np.mean(alone, axis=0), rtol=1e-4, atol=1e-6
  )
  assert same == (kind == "image")


def test_only_a_video_model_tells_the_order_of_frames(kind):
  apply, variables = _make(kind)
  x0 = _latents(2, 2, 4, 4, 6)
  difference = apply(variables, x0) - apply(variables, x0[:, ::-1])
  assert (np.abs(difference) > 1e-4).all() == (kind == "video")


def test_neighbours_in_space_are_seen(kind):
  """More than a bag of positions: shuffling them changes the value."""
  apply, variables = _make(kind)
  x0 = _latents(2, 2, 4, 4, 6)
  difference = apply(variables, x0) - apply(variables, x0[:, :, ::-1])
  assert (np.abs(difference) > 1e-4).all()


def test_text_matters_and_padding_does_not():
  apply, variables = _make(text=True)
  x0 = _latents(2, 2, 4, 4, 6)
  value = apply(variables, x0, TEXT, MASK)
  other = apply(variables, x0, TEXT + 1.0, MASK)
  assert (np.abs(value - other) > 1e-4).all()
  padded = np.where(MASK[..., None], TEXT, np.nan)
  np.testing.assert_array_equal(apply(variables, x0, padded, MASK), value)
  assert not np.allclose(apply(variables, x0, TEXT), value)
  no_words = apply(variables, x0, TEXT, np.zeros_like(MASK))
  assert np.isfinite(no_words).all()


def test_gradient_is_finite_and_smooth_on_a_flat_latent():
  apply, variables = _make()
  slope = jax.jit(jax.grad(lambda x: apply(variables, x).sum()))
  flat = np.zeros((2, 2, 4, 4, 6), np.float32)
  typical = np.abs(slope(_latents(2, 2, 4, 4, 6))).max()
  assert 0 < np.abs(slope(flat)).max() < 10 * typical
  near = slope(flat + 1e-4)
  np.testing.assert_allclose(near, slope(flat), atol=1e-3 * typical)


def test_bfloat16_compute_gives_float32_values():
  apply, variables = _make("video")
  low, _ = _make("video", dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype("float32")
  }
  x0 = _latents(2, 2, 4, 4, 6)
  value = low(variables, x0)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, apply(variables, x0), atol=0.03)
  assert not np.array_equal(value, apply(variables, x0))


def test_caution_takes_off_where_the_members_disagree():
  config = LatentRewardConfig(width=8, depth=1, members=3, caution=2.0)
  module = LatentReward(config)
  x0 = _latents(2, 2, 4, 4, 6)
  variables = _init(module, x0)
  members = np.asarray(_members(module, variables, x0))
  assert members.shape == (3, 2)
  assert len(np.unique(members)) == 6
  cautious = members.mean(axis=0) - 2 * members.std(axis=0)
  apply = jax.jit(module.apply)
  np.testing.assert_allclose(apply(variables, x0), cautious, rtol=1e-5)

  # the members alike: nothing is taken off, and the gradient is finite
  one = variables["params"]["member_0"]
  alike = {"params": {f"member_{i}": one for i in range(3)}}
  slope = jax.jit(jax.grad(lambda x: module.apply(alike, x).sum()))(x0)
  assert np.isfinite(slope).all()


def test_another_unit_is_exact_and_each_members_own():
  module = LatentReward(LatentRewardConfig(width=8, depth=1, members=3))
  x0 = _latents(5, 2, 4, 4, 6)
  variables = _init(module, x0)
  members = np.asarray(_members(module, variables, x0))
  mean, std = np.array([1.0, -20.0, 3.0]), np.array([0.5, 2.0, 10.0])
  normalise = jax.jit(latent_reward.normalised)
  params = normalise(variables["params"], mean, std)
  found = _members(module, {"params": params}, x0)
  expected = (members - mean[:, None]) / std[:, None]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"kind": "audio"}, "is 'audio'; it must be one of image, video"),
    ({"width": 0}, "width of the latent reward model is 0"),
    ({"depth": 0}, "depth of the latent reward model is 0"),
    ({"members": 0}, "members of the latent reward model is 0; it must be at"),
    ({"caution": -1.0}, "caution of the latent reward model is -1.0"),
  ],
)
def test_bad_configs_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    LatentRewardConfig(**options)


def test_bad_inputs_are_refused():
  module = LatentReward(LatentRewardConfig(width=8))
  with pytest.raises(ValueError, match=r"needs \[B, T, H, W, C\]"):
    module.init(jax.random.key(0), _latents(2, 4, 4, 6))
  module = LatentReward(LatentRewardConfig(width=8, text_conditioned=True))
  with pytest.raises(ValueError, match="text-conditioned and got no text"):
    module.init(jax.random.key(0), _latents(2, 1, 2, 2, 6))


def _moves(x0, text):
  """A video reward: how much neighbouring latent frames differ."""
  del text
  return np.abs(np.diff(x0, axis=1)).mean(axis=(1, 2, 3, 4))


def _edges(x0, text):
  """An image reward, not smooth, of neighbouring positions and channels."""
  del text
  return np.abs(np.diff(x0[..., :2], axis=2)).mean(axis=(1, 2, 3, 4))


def _asked_for(x0, text):
  """A prompted reward: the sign of a channel, as the text asks for it."""
  return np.tanh(x0[..., 0]).mean(axis=(1, 2, 3)) * np.sign(text[:, 0, 0])


@pytest.mark.parametrize(
  "kind, text, true",
  [
    ("image", False, _edges),
    ("video", False, _moves),
    ("image", True, _asked_for),
  ],
)
def test_learns_a_known_reward(kind, text, true):
  """Spearman on clips never fitted, after a few seconds."""
  rng = np.random.default_rng(0)
  x0 = rng.standard_normal((3328, 2, 3, 3, 4), np.float32)
  x0 *= rng.uniform(0.5, 1.5, (3328, 1, 1, 1, 4)).astype(np.float32)
  prompt = rng.choice([-1, 1], (3328, 1, 3)).astype(np.float32)
  values = true(x0, prompt)
  values = (values - values.mean()) / values.std()
  config = LatentRewardConfig(kind, width=32, depth=1, text_conditioned=text)
  module = LatentReward(config)
  variables = _init(module, x0[:2], prompt[:2])
  optimizer = optax.adam(4e-3)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(variables, state, *batch):
    def loss(variables):
      x, p, y = batch
      return jnp.mean((module.apply(variables, x, p) - y) ** 2)

    updates, state = optimizer.update(jax.grad(loss)(variables), state)
    return optax.apply_updates(variables, updates), state

  state = optimizer.init(variables)
  for _ in range(400):
    rows = rng.integers(0, 3072, 64)
    variables, state = step(
      variables, state, x0[rows], prompt[rows], values[rows]
    )
  predicted = jax.jit(module.apply)(variables, x0[3072:], prompt[3072:])
  assert stats.spearmanr(predicted, values[3072:]).statistic > 0.9
