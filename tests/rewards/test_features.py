"""Feature extractors by name, and what is none."""

import numpy as np
import pytest

from dollar_jax.data import moving_digits
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.rewards.features import get_features

MODULE = """
import numpy as np


def means(frames):
  return frames.mean(axis=(1, 2, 3))


def flat(frames):
  return frames.mean(axis=(1, 2, 3, 4))


def nothing(frames):
  return means(frames) * np.nan
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  name = f"features_of_{tmp_path.name}"
  (tmp_path / f"{name}.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  return name


def test_digits_are_seen_as_their_judge_does():
  frames = moving_digits.make_clips("test", 3).frames
  found = get_features("digits")(frames)
  np.testing.assert_array_equal(
    found, ClipJudge.load(EMBEDDED).features(frames)
  )


def test_an_extractor_outside_the_package(module):
  frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8)
  found = get_features(f"{module}:means")(frames)
  assert (found.shape, found.dtype) == ((2, 3), np.float32)
  np.testing.assert_allclose(found, frames.mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
  "name, message",
  [
    ("digit", "'digit' is unknown; give 'digits', 'thumbnails', 'videomae:"),
    ("MODULE:mean", "has no function 'mean' for feature extractor"),
    ("no_such_module:f", "of feature extractor .* does not import"),
  ],
)
def test_what_is_none_is_one_sentence(module, name, message):
  with pytest.raises(ValueError, match=message):
    get_features(name.replace("MODULE:m", f"{module}:m"))


@pytest.mark.parametrize(
  "name, message",
  [("flat", r"gave shape \(2,\) for 2 clips"), ("nothing", "are not finite")],
)
def test_what_it_returns_is_checked(module, name, message):
  frames = np.ones((2, 3, 4, 4, 3), np.uint8)
  with pytest.raises(ValueError, match=message):
    get_features(f"{module}:{name}")(frames)


def test_thumbnails_are_mean_colours_of_cells():
  frames = np.zeros((2, 5, 9, 8, 3), np.uint8)
  frames[0, 3:, :3, 6:] = (51, 102, 255)  # last frames, upper right corner
  found = get_features("thumbnails")(frames).reshape(2, 2, 4, 4, 3)
  np.testing.assert_allclose(found[0, 1, 0, 3], [0.2, 0.4, 1.0], rtol=1e-6)
  assert found.sum() == pytest.approx(1.6)
  with pytest.raises(ValueError, match="2 frames of 4x4"):
    get_features("thumbnails")(frames[:, :1])
