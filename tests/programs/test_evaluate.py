"""`dollar evaluate`: what it finds in a folder, and what it refuses."""

import json

import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import moving_digits, videos


def _write(folder, clips, prompts):
  for i, (frames, prompt) in enumerate(zip(clips, prompts, strict=True)):
    videos.write_video(folder / videos.video_name(prompt, i), frames, 8)
  return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """A folder of 80 held-out clips of digits, two a caption."""
  made = moving_digits.make_clips("test", 80, seed=3)
  captions = moving_digits.all_captions()
  folder = tmp_path_factory.mktemp("real")
  assert set(made.captions) == set(captions)
  return _write(folder, made.frames, made.captions)


@pytest.fixture
def evaluate(tmp_path, capsys):
  """Runs the command; returns what it wrote, or the sentence it gave."""

  def run(folder, *flags):
    out = tmp_path / "scores" / "out.json"
    out.unlink(missing_ok=True)
    args = ["evaluate", f"--videos={folder}", f"--out={out}", *flags]
    if cli.main(args) == 0:
      return json.loads(out.read_text())
    assert not out.exists()
    return capsys.readouterr().err.strip().splitlines()[-1]

  return run


def test_real_clips_score_as_real(real, evaluate):
  row = evaluate(real, "--rewards=jpeg_size,temporal_flickering")
  assert (row["videos"], row["prompts"]) == (80, 40)
  assert row["caption_accuracy"] > 0.95
  low, high = row["frechet_interval"]
  assert low <= row["frechet"] <= high
  assert set(row["rewards"]) == {"jpeg_size", "temporal_flickering"}
  jpeg = row["rewards"]["jpeg_size"]
  assert jpeg["samples"] == 80
  assert jpeg["failed"] == 0
  assert jpeg["standard_error"] > 0

  # against itself, the distance is that of the codec's noise: none
  itself = evaluate(real, f"--reference={real}")
  assert itself["frechet"] == pytest.approx(0, abs=1e-3)
  assert itself["frechet"] < row["frechet"]


def test_wrong_captions_are_seen(real, evaluate, tmp_path):
  folder = tmp_path / "wrong"
  folder.mkdir()
  rows = []
  for i, (file, prompt) in enumerate(videos.list_videos(real)):
    (folder / f"{i}.mp4").write_bytes(file.read_bytes())
    digit, direction = moving_digits.parse_caption(prompt)
    wrong = moving_digits.all_captions()
    asked = next(
      c
      for c in wrong
      if moving_digits.parse_caption(c) == ((digit + 1) % 10, direction)
    )
    rows.append(json.dumps({"file_name": f"{i}.mp4", "text": asked}))
  (folder / "metadata.jsonl").write_text("\n".join(rows))
  row = evaluate(folder)
  assert row["caption_accuracy"] < 0.05
  assert row["direction_accuracy"] > 0.95


def test_other_videos_get_their_rewards_only(evaluate, tmp_path):
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (2, 5, 48, 64, 3), np.uint8)
  folder = _write(tmp_path, clips, ["a cat", "a dog"])
  row = evaluate(folder, "--rewards=sharpness")
  assert set(row) == {"videos", "prompts", "rewards"}
  assert row["rewards"]["sharpness"]["samples"] == 2
  sentence = evaluate(folder, f"--reference={folder}")
  assert "--reference needs a feature extractor" in sentence


def test_one_clip_a_caption_gets_its_rewards_and_is_told_why(
  real, evaluate, tmp_path, capsys
):
  file, _ = videos.list_videos(real)[0]
  (tmp_path / file.name).write_bytes(file.read_bytes())
  row = evaluate(tmp_path, "--rewards=jpeg_size")
  assert "frechet" not in row
  assert row["rewards"]["jpeg_size"]["samples"] == 1
  assert "two clips" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (["--videos=nowhere"], "nowhere"),
    (["--rewards=beauty"], "beauty"),
    (["--reference=nowhere"], "nowhere"),
  ],
)
def test_bad_input_is_one_sentence(real, evaluate, flags, sentence):
  found = evaluate(real, *flags)
  assert found.startswith("dollar evaluate: error: ")
  assert sentence in found


def test_reference_of_another_size_is_refused(real, evaluate, tmp_path):
  clip = np.zeros((5, 48, 64, 3), np.uint8)
  folder = _write(tmp_path, [clip], ["a cat"])
  assert "8 frames of 32x32" in evaluate(real, f"--reference={folder}")


def test_truncated_video_is_named(real, evaluate, tmp_path):
  file, _ = videos.list_videos(real)[0]
  (tmp_path / "bad-0.mp4").write_bytes(file.read_bytes()[:200])
  assert "bad-0.mp4" in evaluate(tmp_path)
