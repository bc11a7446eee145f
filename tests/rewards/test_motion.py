"""Temporal flickering is VBench's, on real clips too."""

import itertools

import av
import numpy as np
import pytest

from dollar_jax.rewards.motion import temporal_flickering


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
  for path in sorted(clips_folder.glob("*.mp4"))[:3]:
    with av.open(str(path)) as container:
      decoded = [
        frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
      ]
    clip = np.stack(decoded[:16])
    value = temporal_flickering(clip[None], [""])
    np.testing.assert_allclose(value, _vbench(clip), atol=1e-6)


def test_one_frame_is_refused():
  with pytest.raises(ValueError, match="needs at least 2"):
    temporal_flickering(np.zeros((1, 1, 4, 4, 3), np.uint8), [""])
