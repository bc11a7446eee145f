"""The digits' own rewards, on clips whose motion is known."""

import numpy as np
import pytest

from dollar_jax.data import moving_digits
from dollar_jax.rewards.digits import caption_accuracy, caption_motion


@pytest.fixture(scope="module")
def clips():
  return moving_digits.make_clips("test", 80)


def test_real_clips_go_two_pixels_the_way_they_say(clips):
  found = caption_motion(clips.frames, clips.captions)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, 2, atol=0.05)


def test_backwards_is_below_zero_and_across_is_nothing(clips):
  # four frames go straight; the way back is the same steps turned round
  back = caption_motion(clips.frames[:, 3::-1], clips.captions)
  np.testing.assert_allclose(back, -2, atol=0.05)
  turned = [
    moving_digits.caption(d, moving_digits.DIRECTIONS[way ^ 2])
    for d, way in map(moving_digits.parse_caption, clips.captions)
  ]
  across = caption_motion(clips.frames, turned)
  np.testing.assert_allclose(across, 0, atol=0.05)


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
    caption_motion(clips.frames[:1], ["a cat"])
