"""mp4 files: a round trip, and files that are no videos."""

import json

import numpy as np
import pytest

from dollar_jax.data.videos import (
  list_videos,
  read_video,
  video_name,
  write_video,
)


def _waves(count=9, height=32, width=48):
  """Smooth colours in motion, uint8 [F, H, W, 3]."""
  f, y, x = np.mgrid[0:count, 0:height, 0:width]
  waves = np.sin(x / 15 + f / 4), np.cos(y / 12 + f / 5), np.sin((x + y) / 20)
  return np.uint8(128 + 100 * np.stack(waves, -1))


def _psnr(a, b):
  error = np.mean((a.astype(np.float64) - b) ** 2)
  return 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("videos") / "waves.mp4"
  write_video(path, _waves(), 8)
  return path


@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_round_trip_keeps_frames_and_rate(tmp_path, fps):
  frames = _waves()
  write_video(tmp_path / "a.mp4", frames, fps)
  back, rate = read_video(tmp_path / "a.mp4")
  assert back.shape == frames.shape
  assert back.dtype == np.uint8
  assert rate == pytest.approx(fps)
  assert min(map(_psnr, back, frames)) > 35
  # each frame is nearer to itself than to its neighbour
  assert _psnr(back[1:], frames[1:]) > _psnr(back[1:], frames[:-1]) + 5


def test_colours_keep_their_channels(tmp_path):
  for channel in range(3):
    frames = np.full((2, 16, 16, 3), 40, np.uint8)
    frames[..., channel] = 200
    write_video(tmp_path / "c.mp4", frames, 8)
    back, _ = read_video(tmp_path / "c.mp4")
    assert np.abs(back.astype(int) - frames).max() < 10


def test_one_frame_is_a_video(tmp_path):
  write_video(tmp_path / "one.mp4", _waves(1), 8)
  assert read_video(tmp_path / "one.mp4")[0].shape == (1, 32, 48, 3)


@pytest.mark.parametrize(
  "frames",
  [
    np.zeros((2, 8, 8, 3), np.float32),
    np.zeros((2, 8, 7, 3), np.uint8),
    np.zeros((2, 8, 8, 1), np.uint8),
    np.zeros((8, 8, 3), np.uint8),
    np.zeros((0, 8, 8, 3), np.uint8),
  ],
  ids=["float", "odd", "grey", "image", "empty"],
)
def test_what_is_no_video_is_not_written(tmp_path, frames):
  with pytest.raises(ValueError, match=r"give uint8 \[F, H, W, 3\]"):
    write_video(tmp_path / "a.mp4", frames, 8)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_frame_rate_must_be_positive(tmp_path, fps):
  with pytest.raises(ValueError, match="it must be above 0"):
    write_video(tmp_path / "a.mp4", _waves(), fps)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
  write_video(tmp_path / "a.mp4", _waves(3), 8)
  before = (tmp_path / "a.mp4").read_bytes()

  def full(*_):
    raise OSError("no space left on device")

  monkeypatch.setattr("os.replace", full)
  with pytest.raises(OSError, match="no space"):
    write_video(tmp_path / "a.mp4", _waves(5), 8)
  assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
  assert (tmp_path / "a.mp4").read_bytes() == before


def test_a_missing_folder_is_an_os_error(tmp_path):
  with pytest.raises(OSError):
    write_video(tmp_path / "absent" / "a.mp4", _waves(2), 8)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "tail", "missing"])
def test_a_damaged_file_says_so_in_one_sentence(tmp_path, file, damage):
  path, whole = tmp_path / "bad.mp4", file.read_bytes()
  content = {
    "empty": b"",
    "text": b"<html>404</html>" * 50,
    "half": whole[: len(whole) // 2],
    "tail": whole[:-100],
  }
  if damage in content:
    path.write_bytes(content[damage])
  with pytest.raises(ValueError) as caught:
    read_video(path)
  message = str(caught.value)
  assert message.startswith(str(path))
  assert message.endswith("is it whole?")
  assert "\n" not in message


def test_names_are_vbenchs():
  assert video_name("a cat, running", 3) == "a cat, running-3.mp4"
  assert video_name("and/or", 0) == "and or-0.mp4"


@pytest.mark.parametrize("letter", ["a", "ü", "猫", "🦄"])
def test_long_prompts_fit_a_file_name(tmp_path, letter):
  name = video_name(letter * 300, 12345)
  assert name.removesuffix("-12345.mp4").strip(letter) == ""
  write_video(tmp_path / name, _waves(1), 8)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def _touch(folder, *names):
  for name in names:
    (folder / name).write_bytes(b"")


def test_prompts_come_from_file_names(tmp_path):
  _touch(tmp_path, "a cat-1.mp4", "a cat-0.mp4", "x-ray-12.mp4", "plain.mp4")
  _touch(tmp_path, "notes.txt", "movie.avi")
  assert [(file.name, prompt) for file, prompt in list_videos(tmp_path)] == [
    ("a cat-0.mp4", "a cat"),
    ("a cat-1.mp4", "a cat"),
    ("plain.mp4", "plain"),
    ("x-ray-12.mp4", "x-ray"),
  ]


def test_prompts_come_from_the_index_where_it_is(tmp_path):
  _touch(tmp_path, "000.mp4", "b-1.mp4")
  rows = [
    {"file_name": "000.mp4", "text": "a slow push in\u2028on an ostrich"},
    {"file_name": "gone.mp4", "text": "not here any more"},
  ]
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, "", ""]), "utf-8")
  assert [prompt for _, prompt in list_videos(tmp_path)] == [
    "a slow push in\u2028on an ostrich",
    "b",
  ]


@pytest.mark.parametrize("line", ["{", "[]", '{"file_name": "a.mp4"}'])
def test_an_index_that_is_not_understood_names_the_line(tmp_path, line):
  _touch(tmp_path, "a.mp4")
  good = json.dumps({"file_name": "a.mp4", "text": "a cat"})
  (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
  with pytest.raises(ValueError, match=r"^line 2 of .*metadata\.jsonl is not"):
    list_videos(tmp_path)


def test_what_is_still_being_written_is_not_listed(tmp_path):
  _touch(tmp_path, "a-0.mp4", ".b-0.mp4.part.mp4")
  assert [file.name for file, _ in list_videos(tmp_path)] == ["a-0.mp4"]


def test_a_folder_without_videos_is_refused(tmp_path):
  _touch(tmp_path, "a.avi")
  for folder in (tmp_path, tmp_path / "absent", tmp_path / "a.avi"):
    with pytest.raises(ValueError, match=r"holds no \.mp4 file"):
      list_videos(folder)


def test_real_clips_are_read(clips_folder):
  videos = list_videos(clips_folder)
  assert len({prompt for _, prompt in videos}) > 10
  frames, fps = read_video(videos[0][0])
  assert frames.ndim == 4
  assert frames.shape[-1] == 3
  assert frames.std() > 5
  assert fps > 0
