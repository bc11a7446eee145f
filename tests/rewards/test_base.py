"""Names resolve, mistakes are explained, and rewards that fail are survived."""

import numpy as np
import pytest

from dollar_jax.rewards import base


@pytest.fixture
def frames():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (4, 5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def registry(monkeypatch):
  """A registry whose additions are forgotten after the test."""
  base.known_rewards()
  monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


@pytest.fixture
def outside(tmp_path, monkeypatch):
  """A module of a user's own, on the path."""
  (tmp_path / "users_rewards.py").write_text(
    "import numpy as np\n"
    "def redness(frames, prompts):\n"
    "  return frames[..., 0].mean(axis=(1, 2, 3))\n"
    "constant = 3\n"
  )
  (tmp_path / "users_broken.py").write_text("raise OSError('no licence')\n")
  monkeypatch.syspath_prepend(tmp_path)


def _brightness(frames, prompts):
  return frames.mean(axis=(1, 2, 3, 4))


def test_register_returns_the_function_and_keeps_its_declaration(registry):
  decorate = base.register("brightness", kind="image", prompted=True)
  assert decorate(_brightness) is _brightness
  reward = base.get_reward("brightness")
  assert reward == base.Reward("brightness", _brightness, "image", True)


def test_a_name_belongs_to_one_function(registry):
  base.register("brightness")(_brightness)
  base.register("brightness")(_brightness)  # as on reload
  with pytest.raises(ValueError, match=r"'brightness' is taken by .*bright"):
    base.register("brightness")(lambda frames, prompts: None)
  with pytest.raises(ValueError, match="has a colon"):
    base.register("a:b")(_brightness)
  with pytest.raises(ValueError, match="kind of reward 'x' is 'audio'"):
    base.register("x", kind="audio")(_brightness)


def test_built_in_rewards_are_known_without_importing_them():
  assert {
    "jpeg_size",
    "jpeg_compressibility",
    "sharpness",
    "brisque",
    "temporal_flickering",
    "motion",
  } <= set(base.known_rewards())
  assert base.get_reward("jpeg_size").kind == "image"
  assert base.get_reward("temporal_flickering").kind == "video"


def test_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match=r"did you mean 'jpeg_size'\?.*sharpne"):
    base.get_reward("jpg_size")


def test_a_function_outside_the_package(outside, frames):
  reward = base.get_reward("users_rewards:redness")
  assert (reward.kind, reward.uses_text) == ("video", True)
  values = reward(frames, ["a"] * 4)
  np.testing.assert_allclose(values, frames[..., 0].mean((1, 2, 3)), rtol=1e-6)


def test_an_outside_function_keeps_what_it_declared(registry, outside):
  import users_rewards

  base.register("red", kind="image", num_frames=2)(users_rewards.redness)
  reward = base.get_reward("users_rewards:redness")
  assert (reward.kind, reward.uses_text, reward.num_frames) == (
    "image",
    False,
    2,
  )


@pytest.mark.parametrize(
  "name, message",
  [
    ("no_such_module:f", r"does not import \(ModuleNotFoundError.*PYTHONPATH"),
    ("users_broken:f", r"does not import \(OSError: no licence\)"),
    ("users_rewards:rednes", "did you mean 'redness'"),
    ("users_rewards:constant", "has no function 'constant'"),
    ("users_rewards:", "has no function ''"),
  ],
)
def test_bad_outside_names_are_one_clear_error(outside, name, message):
  with pytest.raises(ValueError, match=message):
    base.get_reward(name)


@pytest.mark.parametrize(
  "num_frames, drawn", [(None, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [0])]
)
def test_frames_are_drawn_as_declared(frames, num_frames, drawn):
  seen = []

  def watch(frames, prompts):
    seen.append(frames)
    return np.zeros(len(frames))

  base.Reward("watch", watch, num_frames=num_frames)(frames, [""] * 4)
  np.testing.assert_array_equal(seen[0], frames[:, drawn])
