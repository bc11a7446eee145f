"""Sums of rewards are read as they are written, and scored side by side."""

import numpy as np
import pytest

from dollar_jax.rewards import base
from dollar_jax.rewards.mixture import Mixture, get_mixture


@pytest.mark.parametrize(
  ("text", "names", "weights"),
  [
    ("sharpness", ["sharpness"], [1]),
    (" - sharpness ", ["sharpness"], [-1]),
    ("-2*sharpness", ["sharpness"], [-2]),
    (
      "sharpness + 0.5*jpeg_size - 1e-3 * temporal_flickering",
      ["sharpness", "jpeg_size", "temporal_flickering"],
      [1, 0.5, -1e-3],
    ),
    ("2*operator:neg", ["operator:neg"], [2]),
  ],
)
def test_sums_are_read_as_they_are_written(text, names, weights):
  mixture = get_mixture(text)
  assert mixture.names == names
  assert mixture.weights == tuple(weights)


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("", r"'' in the reward '' cannot be read; write NAME or WEIGHT\*NAME"),
    ("sharpness +", r"'sharpness \+' in the reward .* cannot be read"),
    ("sharpness jpeg_size", "'sharpness jpeg_size' in the reward"),
    ("0*sharpness", r"weight '0' in the reward '0\*sharpness' is not a number"),
    ("nan*sharpness", "weight 'nan' .* write it like 0.5"),
    ("inf*sharpness", "weight 'inf' in the reward"),
    ("sharpness + -2*jpeg_size", "weight '-2' .* with ' - ' before it"),
    ("sharpness - sharpness", "reward 'sharpness' comes twice"),
    ("sharpness + jpg_size", "reward 'jpg_size' is unknown; did you mean"),
  ],
)
def test_what_cannot_be_read_is_one_sentence(text, sentence):
  with pytest.raises(ValueError, match=sentence):
    get_mixture(text)


def _mixture(*rewards):
  return Mixture("sum", rewards, (1.0,) * len(rewards))


def test_a_sum_is_of_the_widest_kind():
  image = base.Reward("image", len, "image")
  prompted = base.Reward("prompted", len, "image", uses_text=True)
  video = base.Reward("video", len, "video")
  assert _mixture(image, prompted).kind == "image"
  assert _mixture(image, prompted).uses_text
  assert _mixture(image, video).kind == "video"
  assert not _mixture(image, video).uses_text


def test_each_reward_has_a_column_and_failures_are_of_samples():
  frames = np.zeros((3, 2, 4, 4, 3), np.uint8)
  good = base.Reward("good", lambda frames, prompts: [1, 2, 3])
  patchy = base.Reward("patchy", lambda frames, prompts: [5, np.nan, 7])

  values, failures = _mixture(good, patchy).score(frames, ["a"] * 3)

  np.testing.assert_array_equal(values, [[1, 5], [2, np.nan], [3, 7]])
  assert (failures.count, failures.total) == (1, 3)
  assert failures.reason == "patchy: returned 1 of 3 values not finite"
