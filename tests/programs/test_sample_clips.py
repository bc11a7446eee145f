"""Sampled videos on their way into files."""

import time

import numpy as np
import pytest

from dollar_jax.data.videos import write_video
from dollar_jax.interop.pipeline import Batch
from dollar_jax.programs import _sample_clips
from dollar_jax.programs._sample_clips import write_clips

STAGES = {"text": 0.25, "denoising": 0.5, "decoding": 0.125}


def clips(count):
  """uint8 [count, 4, 16, 16, 3], no two alike."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 4, 16, 16, 3), np.uint8)


def batches_of(frames, size, seconds=STAGES):
  """What `Pipeline.batches` would give; its latents count the videos."""
  for start in range(0, len(frames), size):
    rows = range(start, min(start + size, len(frames)))
    first = {} if start else {"compiling": 7.0}
    x0 = np.array(rows, np.float32)
    yield Batch(rows, x0, frames[rows.start : rows.stop], seconds | first)


def test_files_are_byte_for_byte_those_written_one_by_one(tmp_path):
  frames = clips(7)
  (tmp_path / "one").mkdir()
  (tmp_path / "all").mkdir()
  names = [f"{row}.mp4" for row in range(len(frames))]
  for name, clip in zip(names, frames, strict=True):
    write_video(tmp_path / "one" / name, clip, 8)
  files = [
    [tmp_path / "all" / name, tmp_path / "all" / f"{name}.npy"]
    for name in names
  ]
  files[1][0].write_bytes(b"kept")
  write_clips(batches_of(frames, 3), files, 8)
  for row, name in enumerate(names):
    made = (tmp_path / "all" / name).read_bytes()
    wanted = (tmp_path / "one" / name).read_bytes()
    assert made == (b"kept" if row == 1 else wanted)
    assert np.load(files[row][1]) == row
  assert len(list((tmp_path / "all").iterdir())) == 2 * len(names)


def test_a_batch_is_in_its_files_before_the_next_is_taken(tmp_path):
  files = [[tmp_path / f"{row}.mp4"] for row in range(6)]

  def watched():
    for batch in batches_of(clips(6), 2):
      done = [file.exists() for [file] in files]
      assert done == [row < batch.rows.start for row in range(6)]
      yield batch

  write_clips(watched(), files, 8)


def test_stages_are_medians_of_a_video_without_the_first_batch(monkeypatch):
  monkeypatch.setattr(_sample_clips, "_write", lambda *_: time.sleep(0.3))
  slow = [{k: 100 * v for k, v in STAGES.items()}]
  by_batch = iter(slow + [STAGES] * 3)

  def sampled():
    for batch in batches_of(clips(8), 2):
      time.sleep(0.1)
      yield batch._replace(seconds=batch.seconds | next(by_batch))

  note = write_clips(sampled(), [[]] * 8, 8)
  stages = note["stage_seconds_per_video"]
  writing = stages.pop("writing")
  assert stages == {"text": 0.125, "denoising": 0.25, "decoding": 0.0625}
  assert 0.15 <= writing < 0.3  # the two of a batch at once
  assert note["seconds_per_video"] == 0.3125
  assert note["compile_seconds"] == 7.0
  assert 0.2 <= note["wall_seconds_per_video"] < 0.4
  saved = 1 - note["wall_seconds_per_video"] / (0.4375 + writing)
  assert note["overlap"] == pytest.approx(saved)


def test_a_batch_that_is_not_full_says_nothing_of_the_wall(tmp_path):
  files = [[tmp_path / f"{row}.mp4"] for row in range(3)]
  note = write_clips(batches_of(clips(3), 2), files, 8)
  stages = note["stage_seconds_per_video"]
  assert stages["denoising"] == 0.25
  assert not {"wall_seconds_per_video", "overlap"} & set(note)
  assert write_clips(batches_of(clips(2), 2), [[], []], 8) == {}


def test_without_a_codec_there_are_latents_only(tmp_path):
  files = [[tmp_path / f"{row}.npy"] for row in range(3)]
  bare = (b._replace(frames=None) for b in batches_of(clips(3), 2))
  write_clips(bare, files, 8)
  assert [float(np.load(file)) for [file] in files] == [0, 1, 2]


def test_a_full_disk_ends_it_and_leaves_whole_files(tmp_path, monkeypatch):
  files = [[tmp_path / f"{row}.mp4"] for row in range(9)]
  asked = []

  def write(path, frames, fps):
    asked.append(path)
    if path == files[2][0]:
      raise OSError(28, "No space left on device", str(path))
    write_video(path, frames, fps)

  monkeypatch.setattr(_sample_clips, "write_video", write)
  with pytest.raises(OSError, match="No space left") as caught:
    write_clips(batches_of(clips(9), 8), files, 8)
  assert caught.value.filename == str(files[2][0])
  assert len(asked) < 8, "those that had not begun were not given up"
  for file in tmp_path.iterdir():
    assert [file] in files
    assert file.stat().st_size > 0
