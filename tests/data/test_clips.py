"""Files of every kind cut into clips, or refused with the reason."""

import numpy as np
import pytest

from dollar_jax.data import clips, videos
from dollar_jax.data.clips import ClipForm, cut_clips, usual_form
from tests import odd_videos as odd

FORM = ClipForm(8, 48, 64, 8)


def cut(path, form=FORM):
  """The clips of a file, and why it ends where it does not end well."""
  found = []
  try:
    for clip in cut_clips(path, form):
      assert clip.shape == (form.frames, form.height, form.width, 3)
      assert clip.dtype == np.uint8
      found.append(clip)
  except ValueError as error:
    return found, str(error)
  return found, ""


def test_a_video_of_the_form_is_cut_without_a_change(tmp_path):
  file = odd.write(tmp_path / "a.mp4", odd.moving_square(19))
  found, reason = cut(file)
  whole, _ = videos.read_video(file)
  assert (len(found), reason) == (2, "")  # the last three frames are dropped
  np.testing.assert_array_equal(np.concatenate(found), whole[:16])


@pytest.mark.parametrize("fps", [4, 8, 16])
def test_another_rate_takes_the_frame_nearest_in_time(tmp_path, fps):
  levels = np.linspace(20, 230, 16).astype(int)
  file = odd.write(tmp_path / "a.mp4", odd.grey(levels))
  found, _ = cut(file, ClipForm(8, 48, 64, fps))
  wanted = {
    4: levels[::2],
    8: levels,
    # between two frames both are as near: the earlier is taken
    16: np.repeat(levels, 2),
  }[fps]
  assert odd.close(odd.levels_of(np.concatenate(found)), wanted)


def test_a_variable_rate_is_made_even(tmp_path):
  levels = [20, 60, 100, 140, 180, 220]
  times = ["0", "0.125", "0.5", "0.625", "0.75", "0.875"]
  file = odd.write(tmp_path / "a.mkv", odd.grey(levels), times)
  [clip], reason = cut(file)
  assert reason == ""
  assert odd.close(odd.levels_of(clip), [20, 60, 60, 100, 100, 140, 180, 220])


def test_a_rotated_video_is_turned(tmp_path):
  video = odd.moving_square(8)
  plain = odd.write(tmp_path / "plain.mp4", video)
  file = odd.turned(tmp_path / "turned.mp4", plain)
  [clip], _ = cut(file, ClipForm(8, 64, 48, 8))
  whole, _ = videos.read_video(plain)
  wanted = np.rot90(whole, -1, axes=(1, 2))  # clockwise
  assert np.abs(clip.astype(int) - wanted).mean() < 1
  assert np.abs(clip.astype(int) - np.rot90(whole, 1, (1, 2))).mean() > 5


def test_portrait_is_scaled_to_cover_and_cropped_in_its_centre(tmp_path):
  video = np.zeros((8, 128, 64, 3), np.uint8)
  video[:, 40:88] = 200  # the middle 48 of 128 rows
  file = odd.write(tmp_path / "a.mp4", video)
  [clip], _ = cut(file)
  assert clip.min() > 150
  [half], _ = cut(file, ClipForm(8, 32, 32, 8))  # scaled by one half
  assert half[:, 6:26].min() > 150
  assert half[:, :2].max() < 60


def test_ten_bits_become_eight(tmp_path):
  levels = [20, 60, 100, 140, 180, 220, 100, 60]
  file = odd.write(tmp_path / "a.mkv", odd.grey(levels), pix_fmt="yuv420p10le")
  [clip], _ = cut(file)
  assert odd.close(odd.levels_of(clip), levels)


def test_what_breaks_off_gives_the_clips_before(tmp_path):
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (32, 48, 64, 3), np.uint8)
  whole = odd.write(tmp_path / "whole.mp4", video, movflags="faststart")
  found, reason = cut(odd.cut_short(tmp_path / "a.mp4", whole, 0.5))
  assert 1 <= len(found) <= 2
  assert reason.startswith("it breaks off after ")
  np.testing.assert_array_equal(found, cut(whole)[0][: len(found)])


def test_files_of_which_nothing_can_be_taken(tmp_path):
  whole = odd.write(tmp_path / "whole.mp4", odd.moving_square(16))
  (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
  (tmp_path / "empty.mp4").touch()
  reasons = {
    "text.mp4": "it cannot be read as a video (",
    "empty.mp4": "it cannot be read as a video (",
    "none.mp4": "it cannot be read as a video (no such file",
    odd.cut_short(tmp_path / "half.mp4", whole, 0.6).name: "it cannot be read",
    odd.write_sound(tmp_path / "sound.mp4").name: "no video stream (audio o",
    odd.write(tmp_path / "one.mp4", odd.moving_square(1)).name: "one frame on",
    odd.write(tmp_path / "few.mp4", odd.moving_square(5)).name: (
      "it is too short: 5 frames at 8 fps, and a clip takes 8"
    ),
  }
  for name, reason in reasons.items():
    found, said = cut(tmp_path / name)
    assert not found
    assert reason in said, (name, said)
  [clip], _ = cut(tmp_path / "one.mp4", ClipForm(1, 48, 64, 8))
  assert clip.shape == (1, 48, 64, 3)


def test_a_jump_in_time_is_not_filled(tmp_path):
  times = [i / 8 if i < 9 else 1e5 + i for i in range(12)]
  file = odd.write(tmp_path / "a.mkv", odd.moving_square(12), times)
  found, reason = cut(file)
  assert len(found) == 1
  assert "it breaks off after 1.0 s (the next frame comes 1000" in reason


def test_a_list_is_not_followed_to_other_places(tmp_path):
  file = tmp_path / "a.m3u8"
  file.write_text(
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    "http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
  )
  found, reason = cut(file)
  assert not found
  assert reason


def test_the_usual_form_is_that_of_most(tmp_path):
  files = [
    odd.write(tmp_path / f"{i}.mp4", odd.moving_square(4, height, 64), fps=fps)
    for i, (height, fps) in enumerate([(62, 8), (50, 12), (50, 12)])
  ]
  files.insert(0, tmp_path / "absent.mp4")
  assert usual_form(files, 16, 8) == ClipForm(16, 48, 64, 12.0)
  with pytest.raises(ValueError, match="no file that is listed can be read"):
    usual_form(files[:1], 16, 8)


def test_rates_are_exact():
  assert ClipForm(1, 8, 8, 23.976).rate * 1001 == 24000
  assert ClipForm(1, 8, 8, 12).rate == 12
  assert ClipForm(1, 8, 8, 7.5).rate * 2 == 15
  for wrong in ((0, 8, 8, 8), (8, 8, 8, 0), (8, 8, 8, float("nan"))):
    with pytest.raises(ValueError, match="cannot be made; all must be above"):
      clips.ClipForm(*wrong)
