"""One small judge and one set of unseen clips for all tests of this folder."""

import pytest

from dollar_jax.data import moving_digits
from dollar_jax.evaluation.judges import ClipJudge


@pytest.fixture(scope="session")
def judge():
  """A judge fitted to few clips; enough for what the tests ask of it."""
  clips = moving_digits.make_clips("train", 1000)
  return ClipJudge.fit(clips.frames, clips.digits, clips.directions, epochs=3)


@pytest.fixture(scope="session")
def clips():
  """120 real clips of digits the judge has not seen, three a caption."""
  return moving_digits.make_clips("test", 120, seed=1)


@pytest.fixture(scope="session")
def reference(judge):
  """Features of other real clips of unseen digits."""
  return judge.features(moving_digits.make_clips("test", 400, seed=2).frames)
