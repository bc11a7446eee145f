"""Temporal flickering is VBench's, on real clips too."""

import itertools

import av
import numpy as np
import pytest
from scipy import ndimage

from dollar_jax.rewards.motion import motion, temporal_flickering


def _vbench(clip):
  """The published definition, frame by frame as it stands there."""
  errors = [
    np.abs(a.astype(np.float32) - b.astype(np.float32)).mean()
    for a, b in itertools.pairwise(clip)
  ]
  return (255.0 - np.mean(errors)) / 255.0


def test_by_hand():
  frames = np.zeros((2, 3, 4, 4, 3), np.uint8)
  frames[1, 1] = 51  # up and down again: every step is a fifth of the range
  np.testing.assert_allclose(
    temporal_flickering(frames, ["", ""]), [1.0, 0.8], atol=1e-7
  )


def test_direction_of_the_change_does_not_matter():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 4, 6, 6, 3), np.uint8)
  expected = [_vbench(clip) for clip in frames]
  for order in (frames, frames[:, ::-1]):
    np.testing.assert_allclose(
      temporal_flickering(order, ["", ""]), expected, atol=1e-6
    )


def test_equals_vbench_on_real_clips(clips_folder):
  paths = sorted(clips_folder.glob("*.mp4"))
  assert len(paths) > 50
  for path in paths:
    with av.open(str(path)) as container:
      some = itertools.islice(container.decode(video=0), 8)
      clip = np.stack([frame.to_ndarray(format="rgb24") for frame in some])
    value = temporal_flickering(clip[None], [""])
    np.testing.assert_allclose(value, _vbench(clip), atol=1e-6)


def test_one_frame_is_refused():
  with pytest.raises(ValueError, match="needs at least 2"):
    temporal_flickering(np.zeros((1, 1, 4, 4, 3), np.uint8), [""])


def _moving(shifts, side=64, margin=24):
  """Frames of a smooth texture, shifted by (right, down) pixels each."""
  rng = np.random.default_rng(0)
  noise = rng.standard_normal((side + 2 * margin,) * 2)
  texture = ndimage.gaussian_filter(noise, 2.0)
  texture = 255 * (texture - texture.min()) / np.ptp(texture)
  frames, right, down = [], 0, 0
  for step in [(0, 0), *shifts]:
    right, down = right + step[0], down + step[1]
    rows = slice(margin - down, margin - down + side)
    columns = slice(margin - right, margin - right + side)
    frames.append(texture[rows, columns])
  return np.stack([np.stack(frames)] * 3, axis=-1).astype(np.uint8)[None]


@pytest.mark.parametrize(
  ("shifts", "pixels"),
  [
    ([(0, 0)], 0.0),
    ([(2, 0), (2, 0)], 2.0),
    ([(-3, 0)], 3.0),
    ([(3, 4)], 5.0),
    ([(0, 1), (0, 5)], 3.0),
  ],
)
def test_motion_is_the_length_of_known_shifts(shifts, pixels):
  value = motion(_moving(shifts), [""])
  assert value.dtype == np.float32
  # at the edge, where something new comes in, flow is a little too long
  np.testing.assert_allclose(value, 100 * pixels / 64, rtol=0.08, atol=0.01)


def test_motion_is_of_what_moves_fastest():
  frames = _moving([(0, 0)])
  frames[0, 1, 20:44, 20:44] = frames[0, 0, 20:44, 18:42]  # a seventh moves
  np.testing.assert_allclose(motion(frames, [""]), 100 * 2 / 64, atol=0.5)


def test_motion_of_too_little_is_refused():
  for shape in ((1, 1, 32, 32, 3), (1, 2, 32, 12, 3)):
    with pytest.raises(ValueError, match="at least 2 of 16x16"):
      motion(np.zeros(shape, np.uint8), [""])
