"""The judge on real clips it has not seen, and on clips spoilt on purpose."""

import dataclasses
import json
import time

import numpy as np
import pytest
from scipy import ndimage

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import frechet
from dollar_jax.evaluation.judges import NOTHING, ClipJudge


def spoilt(frames, change):
  """Applies a function of clips [N, F, H, W] in [0, 1]."""
  clips = change(frames[..., 0] / 255.0)
  clips = np.clip(np.round(clips * 255), 0, 255).astype(np.uint8)
  return np.repeat(clips[..., None], 3, axis=-1)


def noisy(frames, scale):
  noise = np.random.default_rng(0).normal(0, scale, frames.shape[:-1])
  return spoilt(frames, lambda clips: clips + noise)


def test_unseen_digits_and_directions_are_told(judge, clips):
  assert np.mean(judge.digits(clips.frames) == clips.digits) > 0.95
  assert np.mean(judge.directions(clips.frames) == clips.directions) == 1
  frame_digits = judge.frame_digits(clips.frames)
  assert frame_digits.shape == clips.frames.shape[:2]
  assert np.mean(frame_digits == clips.digits[:, None]) > 0.95


def test_noise_and_blur_that_a_person_sees_through_change_little(judge, clips):
  for frames in (
    noisy(clips.frames, 0.1),
    spoilt(clips.frames, lambda x: ndimage.gaussian_filter(x, (0, 0, 1, 1))),
  ):
    assert np.mean(judge.digits(frames) == clips.digits) > 0.93
    assert np.mean(judge.directions(frames) == clips.directions) > 0.98


def test_directions_turn_with_the_clip(judge, clips):
  mirrored = judge.directions(clips.frames[:, :, :, ::-1])
  left_right = np.array([1, 0, 2, 3])  # moving_digits.DIRECTIONS swapped
  np.testing.assert_array_equal(mirrored, left_right[clips.directions])


def test_what_shows_no_digit_is_no_digit(judge, clips):
  black = np.zeros_like(clips.frames[:8])
  snow = np.random.default_rng(0).integers(0, 256, black.shape, np.uint8)
  for frames in (black, black + 255, snow):
    assert set(judge.digits(frames)) == {NOTHING}
    assert set(judge.frame_digits(frames).ravel()) == {NOTHING}
    assert np.isfinite(judge.features(frames)).all()
  assert set(judge.directions(black)) == {NOTHING}


def test_a_digit_seen_in_few_frames_is_not_the_clips(judge, clips):
  frames = clips.frames[:40].copy()
  frames[:, 2:] = 0
  assert set(judge.digits(frames)) == {NOTHING}
  assert np.mean(judge.frame_digits(frames)[:, 0] == clips.digits[:40]) > 0.9
  assert (judge.frame_digits(frames)[:, 2:] == NOTHING).all()


def test_a_clip_that_rests_has_no_direction(judge, clips):
  still = np.repeat(clips.frames[:8, :1], 8, axis=1)
  assert set(judge.directions(still)) == {NOTHING}
  np.testing.assert_array_equal(
    judge.digits(still), judge.digits(clips.frames[:8])
  )


def test_a_digit_that_changes_is_seen_frame_by_frame(judge, clips):
  frames = clips.frames.copy()
  frames[:, 4:] = np.roll(clips.frames, 4, axis=0)[:, 4:]  # the next digit
  frame_digits = judge.frame_digits(frames)
  assert np.mean(frame_digits[:, 0] != frame_digits[:, -1]) > 0.95


def test_features_do_not_depend_on_company(judge, clips):
  features = judge.features(clips.frames)
  assert features.shape == (120, 64)
  assert features.dtype == np.float32
  alone = np.concatenate(
    [judge.features(clips.frames[i : i + 1]) for i in (3, 99)]
  )
  np.testing.assert_allclose(features[[3, 99]], alone, atol=1e-4)


def test_features_have_unit_variance_over_the_clips_of_the_fit(judge):
  fitted = moving_digits.make_clips("train", 1000)
  variance = judge.features(fitted.frames).var(0).mean()
  assert variance == pytest.approx(1, abs=1e-3)


def test_frechet_distance_sees_what_is_wrong(judge, clips, reference):
  def distance(frames):
    return frechet.frechet_distance(judge.features(frames), reference)

  real = distance(clips.frames)
  corner = np.zeros((32, 32))
  corner[:6, :6] = 0.6
  turns = spoilt(clips.frames, lambda x: np.roll(x, 4, axis=1))
  for name, frames in {
    "noise": noisy(clips.frames, 0.2),
    "blur": spoilt(
      clips.frames, lambda x: ndimage.gaussian_filter(x, (0, 0, 2, 2))
    ),
    "junk in a corner": spoilt(clips.frames, lambda x: np.maximum(x, corner)),
    "jump": turns,
    "standstill": np.repeat(clips.frames[:, :1], 8, axis=1),
    "one digit": clips.frames[clips.digits == 3],
  }.items():
    assert distance(frames) > 1.3 * real, name
  assert distance(noisy(clips.frames, 0.2)) > distance(noisy(clips.frames, 0.1))


def test_saved_judge_is_the_same_and_small(judge, clips, tmp_path):
  judge.save(tmp_path / "judge")
  loaded = ClipJudge.load(tmp_path / "judge")
  for name in ("features", "digits", "frame_digits", "directions"):
    np.testing.assert_array_equal(
      getattr(loaded, name)(clips.frames), getattr(judge, name)(clips.frames)
    )
  assert loaded.shape_threshold == judge.shape_threshold
  files = sorted((tmp_path / "judge").iterdir())
  assert [file.name for file in files] == ["judge.json", "judge.safetensors"]
  assert sum(file.stat().st_size for file in files) < 1.5e6
  json.loads(files[0].read_text())


def test_missing_and_damaged_judges_are_named(judge, tmp_path):
  with pytest.raises(ValueError, match=r"no judge \(judge.safetensors is"):
    ClipJudge.load(tmp_path)
  judge.save(tmp_path)
  weights = tmp_path / "judge.safetensors"
  weights.write_bytes(weights.read_bytes()[:1000])
  with pytest.raises(ValueError, match="is damaged; make it again"):
    ClipJudge.load(tmp_path)
  judge.save(tmp_path)
  (tmp_path / "judge.json").write_text("{}")
  with pytest.raises(ValueError, match="is damaged; make it again"):
    ClipJudge.load(tmp_path)


def test_clips_that_do_not_fit_are_refused(judge, clips):
  with pytest.raises(ValueError, match=r"7x32x32 cannot be judged .* 8x32x32"):
    judge.features(clips.frames[:, 1:])
  with pytest.raises(ValueError, match=r"\(8, 32, 32, 3\) and type uint8"):
    judge.digits(clips.frames[0])
  with pytest.raises(ValueError, match="type float32"):
    judge.directions(clips.frames.astype(np.float32))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"digits": np.zeros(3, int)}, r"digits have shape \(3,\); 120 clips"),
    ({"directions": np.full(120, 2)}, r"directions .* lack \[0, 1\]"),
    ({"frames": np.zeros((120, 8, 30, 32, 3), np.uint8)}, "multiples of 4"),
  ],
)
def test_fit_refuses_arrays_that_do_not_fit_together(clips, change, message):
  given = {**dataclasses.asdict(clips), **change}
  with pytest.raises(ValueError, match=message):
    ClipJudge.fit(given["frames"], given["digits"], given["directions"])


@pytest.mark.slow
def test_full_judge_is_right_on_nearly_all_unseen_clips():
  train = moving_digits.make_clips("train", 4000)
  start = time.process_time()
  judge = ClipJudge.fit(train.frames, train.digits, train.directions)
  seconds = time.process_time() - start
  test = moving_digits.make_clips("test", 2000, seed=1)
  right = judge.digits(test.frames) == test.digits
  right &= judge.directions(test.frames) == test.directions
  assert right.mean() > 0.985
  assert seconds < 60  # processor time of all cores
