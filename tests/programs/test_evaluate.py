"""`dollar evaluate`: what it finds in a folder, and what it refuses."""

import json

import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import moving_digits, videos
from dollar_jax.evaluation import frechet
from dollar_jax.rewards.features import thumbnails


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
  assert row["features"] == "digits"
  assert row["reference_samples"] == 2000
  # the clips are real, so that a perfect generator scores as they do
  assert 0.5 < row["frechet"] / row["frechet_floor"] < 2
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
  assert "needs a feature extractor" in sentence


def test_any_clips_are_compared_in_named_features(evaluate, tmp_path, capsys):
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (6, 3, 16, 16, 3), np.uint8)
  prompts = ["a cat", "a dog"] * 3
  for name, some in (("all", clips), ("dark", clips // 4)):
    (tmp_path / name).mkdir()
    _write(tmp_path / name, some, prompts)
  wide = np.zeros((4, 20, 30, 3), np.uint8)  # another size among them
  videos.write_video(tmp_path / "dark" / "a dog-9.mp4", wide, 8)
  row = evaluate(
    tmp_path / "dark",
    f"--reference={tmp_path / 'all'}",
    "--features=thumbnails",
    "--rewards=sharpness",
  )
  assert row["features"] == "thumbnails"
  assert (row["samples"], row["reference_samples"]) == (7, 6)
  assert row["rewards"]["sharpness"]["samples"] == 7
  seen = {
    name: np.stack(
      [
        thumbnails(videos.read_video(file)[0][None])[0]
        for file, _ in videos.list_videos(tmp_path / name)
      ]
    )
    for name in ("dark", "all")
  }
  assert row["frechet"] == pytest.approx(
    frechet.frechet_distance(seen["dark"], seen["all"]), rel=1e-6
  )
  assert row["frechet_extrapolated"] is row["frechet_floor"] is None
  reason = "it needs 192 clips of each kind; there are 7 and 6"
  assert row["left_out"]["frechet_extrapolated"] == reason
  assert reason in capsys.readouterr().out

  alone = evaluate(tmp_path / "dark", "--features=thumbnails")
  assert alone["frechet"] is None
  assert alone["diversity"] == row["diversity"] > 0


def test_rewards_meet_their_own_prompts(evaluate, tmp_path, monkeypatch):
  """In batches too, and where a clip of another size cuts one short."""
  (tmp_path / "asks.py").write_text(
    "def right(frames, prompts):\n"
    "  pairs = zip(frames, prompts)\n"
    "  return [float(f.mean() // 60 == int(p)) for f, p in pairs]\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  for i in range(40):
    shade, size = i % 4, 16 if i < 35 else 32
    clip = np.full((2, size, size, 3), 60 * shade + 30, np.uint8)
    videos.write_video(tmp_path / f"{shade}-{i}.mp4", clip, 8)
  row = evaluate(tmp_path, "--rewards=asks:right")
  assert row["rewards"]["asks:right"]["mean"] == 1
  assert row["rewards"]["asks:right"]["samples"] == 40


def test_one_clip_a_caption_gets_its_rewards_and_is_told_why(
  real, evaluate, tmp_path, capsys
):
  file, _ = videos.list_videos(real)[0]
  (tmp_path / file.name).write_bytes(file.read_bytes())
  row = evaluate(tmp_path, "--rewards=jpeg_size")
  assert row["frechet"] is row["diversity"] is None
  assert row["rewards"]["jpeg_size"]["samples"] == 1
  assert row["rewards"]["jpeg_size"]["interval"] is None
  assert "no prompt has two clips" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (["--videos=nowhere"], "nowhere"),
    (["--rewards=beauty"], "beauty"),
    (["--reference=nowhere"], "nowhere"),
    (["--features=eyes"], "eyes"),
    (["--features=videomae:nowhere"], "nowhere"),
  ],
)
def test_bad_input_is_one_sentence(real, evaluate, flags, sentence):
  found = evaluate(real, *flags)
  assert found.startswith("dollar evaluate: error: ")
  assert sentence in found


def test_reference_of_another_size_is_refused(real, evaluate, tmp_path):
  clip = np.zeros((5, 48, 64, 3), np.uint8)
  folder = _write(tmp_path, [clip], ["a cat"])
  assert "a judge of 8x32x32" in evaluate(real, f"--reference={folder}")


def test_truncated_video_is_named(real, evaluate, tmp_path):
  file, _ = videos.list_videos(real)[0]
  (tmp_path / "bad-0.mp4").write_bytes(file.read_bytes()[:200])
  assert "bad-0.mp4" in evaluate(tmp_path)
