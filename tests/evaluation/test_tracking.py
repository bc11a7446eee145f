"""Tracking on bright squares whose path is known."""

import numpy as np
import pytest

from dollar_jax.evaluation import tracking


def square_clip(path, side=6, size=32):
  """A white square with its first corner at every point of a path [F, 2]."""
  clip = np.zeros((len(path), size, size), np.float32)
  for frame, (top, left) in zip(clip, path, strict=True):
    frame[top : top + side, left : left + side] = 1
  return clip


def first_motion(path):
  return tracking.first_motion(tracking.track(square_clip(path)[None]))[0]


def test_grey_is_the_mean_of_the_colours():
  frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
  np.testing.assert_allclose(
    tracking.grey(frames), frames.mean(-1) / 255, atol=1e-6
  )


def test_centres_are_found_above_dim_noise():
  path = [(3, 4), (5, 4), (20, 26)]
  noise = np.random.default_rng(0).uniform(0, 0.29, (3, 32, 32))
  clip = np.maximum(square_clip(path), noise)
  found = tracking.track(clip[None].astype(np.float32))
  np.testing.assert_allclose(found.centres[0], np.array(path) + 2.5, atol=1e-4)
  assert found.visible.all()


def test_darkness_is_not_visible_and_has_no_shape():
  clips = np.zeros((1, 4, 32, 32), np.float32)
  clips[:, :, :6, :6] = 0.2  # too dim to be seen
  clips[0, 1] = square_clip([(8, 8)])[0]
  found = tracking.track(clips)
  assert found.visible.tolist() == [[False, True, False, False]]
  shapes = tracking.shapes(clips, found)
  assert np.isfinite(found.centres).all()
  assert shapes[0, [0, 2, 3]].max() == 0 < shapes[0, 1].max()


def test_a_shape_looks_the_same_wherever_it_is():
  rng = np.random.default_rng(0)
  thing = rng.uniform(0.4, 1, (13, 11)).astype(np.float32)
  places = [(0, 0), (7, 9), (19, 21), (0, 21)]
  clips = np.zeros((1, len(places), 32, 32), np.float32)
  for frame, (top, left) in zip(clips[0], places, strict=True):
    frame[top : top + 13, left : left + 11] = thing
  shapes = tracking.shapes(clips, tracking.track(clips))[0]
  assert shapes.std(1).min() > 0.1
  np.testing.assert_allclose(shapes, shapes[:1].repeat(4, 0), atol=1e-4)


def test_light_is_kept_and_centred_in_the_shape():
  clip = square_clip([(11, 7)])[None]
  shapes = tracking.shapes(clip, tracking.track(clip))
  area = (tracking.WINDOW // tracking.SHAPE) ** 2
  assert shapes.sum() * area == pytest.approx(clip.sum())
  picture = shapes.reshape(tracking.SHAPE, tracking.SHAPE)
  np.testing.assert_allclose(picture, picture[::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize(
  "path, expected",
  [
    ([(9, 2 * f) for f in range(8)], (0, 2)),
    ([(20 - 2 * f, 5) for f in range(8)], (-2, 0)),
    # bounces off the wall and goes back for longer than it came
    ([(9, abs(2 * f - 4)) for f in range(8)], (0, -2)),
    # trembles before it starts
    ([(9, 10), (10, 10), (10, 12), (10, 15), (10, 18), (10, 21)], (0, 2.75)),
    ([(9, 9)] * 8, (0, 0)),
  ],
)
def test_first_motion(path, expected):
  np.testing.assert_allclose(first_motion(path), expected, atol=1e-4)


def test_what_appears_late_does_not_seem_to_jump():
  clip = square_clip([(9, 8 + 2 * f) for f in range(8)])
  clip[:3] = 0
  motion = tracking.first_motion(tracking.track(clip[None]))[0]
  np.testing.assert_allclose(motion, (0, 2), atol=1e-4)
