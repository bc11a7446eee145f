"""The digits' own rewards, on clips whose motion is known."""

import numpy as np
import pytest

from dollar_jax.data import moving_digits
from dollar_jax.rewards.digits import caption_accuracy, caption_side


@pytest.fixture(scope="module")
def clips():
  return moving_digits.make_clips("test", 80)


def test_the_side_is_where_the_light_is():
  frames = np.zeros((3, 2, 32, 32, 3), np.uint8)
  frames[:2, :, 10:12, 3:5] = 255  # 5 above the middle and 12 left of it
  for way, wanted in (("left", 12), ("right", -12), ("up", 5), ("down", -5)):
    prompts = [moving_digits.caption(3, way)] * 3
    found = caption_side(frames, prompts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [wanted, wanted, 0], atol=1e-4)


def test_half_the_frames_are_half_the_way():
  frames = np.zeros((1, 2, 32, 32, 3), np.uint8)
  frames[0, 0, 10:12, 3:5] = 255
  found = caption_side(frames, [moving_digits.caption(3, "left")])
  np.testing.assert_allclose(found, 6, atol=1e-4)


def test_accuracy_wants_digit_and_direction(clips):
  assert caption_accuracy(clips.frames, clips.captions).mean() > 0.9
  for change in ((1, 0), (0, 1)):
    wrong = []
    for caption in clips.captions:
      digit, way = np.add(moving_digits.parse_caption(caption), change)
      wrong.append(
        moving_digits.caption(digit % 10, moving_digits.DIRECTIONS[way % 4])
      )
    assert caption_accuracy(clips.frames, wrong).mean() < 0.1


def test_other_captions_are_refused(clips):
  with pytest.raises(ValueError, match="not one the digits model knows"):
    caption_side(clips.frames[:1], ["a cat"])
