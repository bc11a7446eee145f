"""Clips of other sizes, lengths and rates play in step."""

import numpy as np

from dollar_jax.evaluation.side_by_side import in_step, shrunk


def counted(frames, height, width):
  """A clip whose n-th frame is of brightness n."""
  clip = np.zeros((frames, height, width, 3), np.uint8)
  clip += np.arange(frames, dtype=np.uint8)[:, None, None, None]
  return clip


def test_each_plays_at_its_own_speed_and_waits_at_its_end():
  clips = [(counted(6, 8, 8), 12.0), (counted(2, 8, 8), 6.0)]
  found, fps = in_step(clips, 64)
  assert (found.shape, fps) == ((2, 6, 8, 8, 3), 12.0)
  assert found[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
  assert found[1, :, 0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]
  found, fps = in_step(clips[::-1], 64)
  assert fps == 12.0
  assert found[1, :, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_no_page_plays_more_than_thirty_frames_a_second():
  found, fps = in_step([(counted(60, 8, 8), 60.0)], 64)
  assert fps == 30.0
  assert found[0, :, 0, 0, 0].tolist() == list(range(0, 60, 2))


def test_large_ones_shrink_and_other_shapes_are_fitted():
  wide, tall = counted(3, 40, 80), counted(3, 80, 40)
  found, _ = in_step([(wide, 3.0), (tall + 9, 3.0)], 40)
  assert found.shape == (2, 3, 20, 40, 3)
  assert (found[0, 2] == 2).all()
  assert (found[1, 2, :, 15:25] == 11).all()
  assert (found[1, 2, :, :15] == 128).all()
  assert (found[1, 2, :, 25:] == 128).all()


def test_shrunk_ones_are_means_of_what_was_there():
  clip = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), np.uint8)
  found = shrunk(clip, 8).astype(float)
  means = clip.reshape(2, 4, 2, 8, 2, 3).mean((2, 4))
  # rounded twice, along rows and along columns
  np.testing.assert_allclose(found, means, atol=1)
  assert shrunk(clip, 16) is clip


def test_small_ones_stay_and_are_enlarged_beside_a_larger_one():
  large, small = counted(1, 16, 16), counted(1, 4, 4)
  small[0, 0, 0] = 200
  found, _ = in_step([(large, 1.0), (small, 1.0)], 64)
  assert found.shape[2:4] == (16, 16)
  assert (found[1, 0, :4, :4] == 200).all()
  assert (found[1, 0, 4:] == 0).all()
