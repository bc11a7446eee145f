"""The embedded data: what its captions say is what its clips show."""

import collections

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dollar_jax.data import moving_digits
from dollar_jax.data.moving_digits import DIRECTIONS, make_clips, parse_caption

WAYS = np.array([(0, -2), (0, 2), (-2, 0), (2, 0)])  # rows and columns a frame


def _box(image):
  """Rows and columns [top, bottom, left, right) that are not black."""
  rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
  return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def _crop(image):
  top, bottom, left, right = _box(image)
  return image[top:bottom, left:right]


@pytest.fixture(scope="module")
def train():
  return make_clips("train", 400, seed=0)


@pytest.fixture(scope="module")
def test():
  return make_clips("test", 400, seed=0)


def test_clips_are_the_same_for_the_same_arguments(train):
  again = make_clips("train", 400, seed=0)
  np.testing.assert_array_equal(again.frames, train.frames)
  assert again.captions == train.captions
  other = make_clips("train", 400, seed=1)
  different = (other.frames != train.frames).any(axis=(1, 2, 3, 4))
  assert different.mean() > 0.9
  assert other.captions == train.captions  # which come in turn


def test_clips_are_white_on_black(train):
  assert train.frames.shape == (400, 8, 32, 32, 3)
  assert train.frames.dtype == np.uint8
  for channel in (1, 2):
    np.testing.assert_array_equal(
      train.frames[..., channel], train.frames[..., 0]
    )
  assert (train.frames == 0).mean() > 0.7
  assert (train.frames.max(axis=(1, 2, 3, 4)) > 200).all()


def test_no_image_of_a_digit_is_in_both_splits(train, test):
  seen, unseen = (
    {_crop(clip[0, ..., 0]).tobytes() for clip in clips.frames}
    for clips in (train, test)
  )
  assert len(seen) > 300  # many images are drawn from, so a leak would show
  assert len(unseen) > 200
  assert not seen & unseen


def test_the_digit_stays_whole_and_in_the_frame(train):
  for clip in train.frames[:120]:
    crops = {_crop(frame[..., 0]).tobytes() for frame in clip}
    assert len(crops) == 1


def test_motion_is_what_the_caption_says_until_a_wall(train):
  turned = 0
  for clip, direction in zip(train.frames, train.directions, strict=True):
    boxes = np.array([_box(frame[..., 0]) for frame in clip])
    steps = np.diff(boxes[:, [0, 2]], axis=0)
    way = WAYS[direction]
    np.testing.assert_array_equal(steps[:4], np.tile(way, (4, 1)))
    # afterwards forth or back on the same line, two pixels a frame
    np.testing.assert_array_equal(np.abs(steps), np.tile(np.abs(way), (7, 1)))
    turned += (steps[-1] == -way).all()
  assert 20 < turned < 380  # some meet a wall, and some do not


def test_captions_digits_and_directions_agree(train):
  for i, text in enumerate(train.captions):
    assert parse_caption(text) == (train.digits[i], train.directions[i])
    words = f"a {train.digits[i]} moving {DIRECTIONS[train.directions[i]]}"
    assert text == words
  counts = collections.Counter(train.captions)
  assert set(counts.values()) == {10}
  assert sorted(counts) == sorted(moving_digits.all_captions())


def test_the_digit_shown_is_the_digit_named(train):
  """By the mean image of each digit, slid over the first frame."""
  from sklearn.datasets import load_digits

  data = load_digits()
  means = [data.images[data.target == d].mean(0) for d in range(10)]
  means = np.stack([np.kron(m, np.ones((2, 2))).ravel() for m in means])
  means -= means.mean(1, keepdims=True)
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  first = train.frames[::4, 0, ..., 0].astype(np.float64)  # all digits come
  windows = np.lib.stride_tricks.sliding_window_view(first, (16, 16), (1, 2))
  windows = windows[:, ::2, ::2].reshape(len(first), -1, 256)
  windows = windows - windows.mean(-1, keepdims=True)
  windows /= np.linalg.norm(windows, axis=-1, keepdims=True) + 1e-9
  found = (windows @ means.T).max(axis=1).argmax(axis=1)
  assert np.mean(found == train.digits[::4]) > 0.75


def test_parse_is_the_inverse_of_caption():
  captions = moving_digits.all_captions()
  assert len(set(captions)) == 40
  for text in captions:
    digit, direction = parse_caption(text)
    assert moving_digits.caption(digit, DIRECTIONS[direction]) == text


@pytest.mark.parametrize(
  "text", ["", "a 10 moving left", "a 3 moving Left", "a 3 moving left "]
)
def test_other_prompts_are_refused(text):
  with pytest.raises(ValueError, match="is not one the digits model knows"):
    parse_caption(text)


def test_bad_requests_are_refused():
  with pytest.raises(ValueError, match="number of clips is 0"):
    make_clips("train", 0)
  with pytest.raises(ValueError, match="'valid' is unknown; use 'train'"):
    make_clips("valid", 1)


def test_builder_writes_array_records(prepared):
  folder = prepared / "digits" / "moving_digits" / "1.0.0"
  assert len(list(folder.glob("*-train.array_record-*"))) == 1
  builder = tfds.builder_from_directory(folder)
  for split, count, seed in (("train", 6, 0), ("test", 3, 1)):
    source = builder.as_data_source(split=split)
    assert len(source) == count
    rows = {row["prompt"].decode(): row for row in source}
    clips = make_clips(split, count, seed)
    assert rows.keys() == set(clips.captions)
    for i, text in enumerate(clips.captions):
      np.testing.assert_array_equal(rows[text]["frames"], clips.frames[i])
      assert rows[text]["digit"] == clips.digits[i]
      assert rows[text]["direction"] == clips.directions[i]
