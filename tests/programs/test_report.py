"""`dollar report`: what a page shows of runs, clips and scores."""

import json
import re

import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import videos
from dollar_jax.programs import _report as report


@pytest.fixture
def run(tmp_path, capsys):
  """Makes the page; returns it, or the sentence that was given."""

  def call(*flags):
    out = tmp_path / "page" / "report.html"
    out.unlink(missing_ok=True)
    if cli.main(["report", f"--out={out}", *flags]) == 0:
      return out.read_text()
    assert not out.exists()
    return capsys.readouterr().err.strip().splitlines()[-1]

  return call


@pytest.fixture
def clips(tmp_path):
  """Folders a and b, which share two of three prompts."""
  shades = iter(range(0, 250, 20))
  for name, prompts in (("a", "xyz"), ("b", "zyw")):
    (tmp_path / name).mkdir()
    for prompt in prompts:
      frames = np.full((4, 32, 48, 3), next(shades), np.uint8)
      videos.write_video(tmp_path / name / f"{prompt}-0.mp4", frames, 8)
  return tmp_path


def training_run(folder, rate, losses):
  folder.mkdir()
  config = {"task": "distill", "steps": 9, "optim": {"rate": rate}}
  (folder / "config.json").write_text(json.dumps(config))
  rows = [{"step": i, "score_loss": x} for i, x in enumerate(losses)]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)
  note = {"seconds_per_step": 0.25, "peak_memory_bytes": 3e9, "jax": "1.2.3"}
  (folder / "machine.json").write_text(json.dumps(note))
  return folder


def test_clips_of_shared_prompts_stand_side_by_side(run, clips):
  page = run(f"--clips=teacher={clips / 'a'},{clips / 'b'}")
  grid = re.search(r'<div class="clips.*?</div>', page, re.DOTALL)[0]
  assert re.findall(r"<b>(.*?)</b>", grid) == ["teacher", "b"]
  assert re.findall(r"<span>(.*?)</span>", grid) == ["y", "z"]
  assert page.count("data:video/mp4") == 1


def test_speed_is_what_sampling_wrote(run, clips):
  for name, seconds in (("a", 6.0), ("b", 0.5)):
    note = {"steps": 4, "seconds_per_video": seconds, "network_evaluations": 8}
    (clips / name / "machine.json").write_text(json.dumps(note))
  page = run(f"--clips={clips / 'a'},{clips / 'b'}")
  assert '<td class="number">12.00</td>' in page  # times as fast
  assert "times as fast" in page
  assert "by stage" not in page  # of such folders nobody knows


def test_stages_are_shown_of_the_folders_that_know_them(run, clips):
  note = {"steps": 1, "seconds_per_video": 0.5}
  (clips / "a" / "machine.json").write_text(json.dumps(note))
  note["stage_seconds_per_video"] = {"text": 0.11, "writing": 0.44}
  note |= {"wall_seconds_per_video": 0.33, "overlap": 0.4}
  (clips / "b" / "machine.json").write_text(json.dumps(note))
  page = run(f"--clips={clips / 'a'},{clips / 'b'}")
  table = page[: page.index("Seconds a video by stage")]
  table = table[table.rindex("<table>") :]
  assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["b"]
  cells = re.findall(r'<td class="number">(.*?)</td>', table)
  # text, denoising, decoding, writing, the clock, its share, compilation
  assert cells == ["0.110", "–", "–", "0.440", "0.330", "0.400", "–"]


def test_runs_share_their_curves_and_show_where_they_differ(run, tmp_path):
  one = training_run(tmp_path / "one", 0.1, [3.0, 2.0, 1.0])
  two = training_run(tmp_path / "two", 0.2, [3.0, 2.5])
  page = run(f"--runs={one},{two}")
  assert page.count("<svg") == 1
  svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
  assert "fake score: denoising loss" in svg
  assert {"one", "two"} <= set(re.findall(r"<text.*?>(.*?)</text>", svg))
  differing = page[page.index("Entries in which the runs differ") - 400 :]
  assert "optim.rate" in differing
  assert "steps = 9" in page
  assert "jax 1.2.3" in page
  assert '<td class="number">3.00</td>' in page  # GB
  both = re.findall(r'<th scope="row">(\S+?)</th>', page)
  assert both == ["one", "two", "optim.rate"]


def test_scores_keep_their_intervals_and_reasons(run, tmp_path):
  content = {
    "videos": 8,
    "samples": 8,
    "frechet": 1.5,
    "frechet_interval": [1.25, 1.75],
    "frechet_floor": None,
    "features": "thumbnails",
    "left_out": {"frechet_floor": "too few"},
    "rewards": {"jpeg_size": {"mean": -2.0, "interval": [-3.0, -1.0]}},
  }
  (tmp_path / "scores.json").write_text(json.dumps(content))
  (tmp_path / "vbench.json").write_text(json.dumps({"quality": 81.89}))
  page = run(
    f"--scores=student={tmp_path / 'scores.json'},{tmp_path / 'vbench.json'}"
  )
  assert "[1.25, 1.75]" in page
  assert "jpeg size" in page
  assert "[−3.00, −1.00]" in page
  assert "no frechet_floor, as too few (student)" in page
  assert "frechet floor</th>" not in page
  assert "81.9" in page


def test_a_page_that_is_too_large_gets_smaller_clips(run, clips, monkeypatch):
  command = f"--clips={clips / 'a'},{clips / 'b'}"
  size = len(run(command).encode())
  monkeypatch.setattr(report, "MOST_BYTES", size - 1)
  assert "the page would have" in run(command, "--max_side=100")
  monkeypatch.setattr(report, "_SMALLEST", 8)
  page = run(command)
  assert len(page.encode()) < size
  assert 'height="' in page


@pytest.mark.parametrize(
  "flags, sentence",
  [
    ([], "nothing to show; give --runs, --clips or --scores"),
    (["--runs=nowhere"], "nowhere is no training run"),
    (["--clips=nowhere"], "nowhere holds no .mp4 file"),
    (["--scores=nowhere.json"], "nowhere.json"),
    (["--clips={a},{c}"], "no prompt has clips in all of"),
    (["--clips={a},x/a"], "has 'a' twice; tell them apart with NAME=x/a"),
    (["--scores={a}/x-0.mp4"], "x-0.mp4"),
  ],
)
def test_bad_input_is_one_sentence(run, clips, flags, sentence):
  (clips / "c").mkdir()
  frames = np.zeros((2, 16, 16, 3), np.uint8)
  videos.write_video(clips / "c" / "w-0.mp4", frames, 8)
  flags = [flag.format(a=clips / "a", c=clips / "c") for flag in flags]
  found = run(*flags)
  assert found.startswith("dollar report: error: ")
  assert sentence in found


def test_a_page_fetches_nothing(run, clips, tmp_path):
  one = training_run(tmp_path / "<one>", 0.1, [3.0, 2.0])
  page = run(f"--runs={one}", f"--clips={clips / 'a'}")
  assert not re.search(r'(?:src|href)="(?!data:|#)', page)
  assert "<one>" not in page
