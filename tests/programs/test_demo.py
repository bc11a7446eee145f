"""The main job in a shortened form, and its report and metrics."""

import functools
import json
import re

import jax
import pytest

from dollar_jax import cli
from dollar_jax.programs import _demo as demo
from dollar_jax.programs import _demo_stages
from dollar_jax.programs._demo_report import write_ablation_report

# the first test carries every compilation
pytestmark = pytest.mark.timeout(1200)

ROW = {
  "name",
  "steps",
  "network_evaluations",
  "frechet",
  "caption_accuracy",
  "diversity",
  "true_reward",
  "seconds_per_video",
  "speedup_over_teacher",
}


FLAGS = ["--samples=80", "--scale=0.01"]


@pytest.fixture(scope="module")
def short(optimised):
  """Few updates; what computes for long are the samplers, hence optimised."""
  train = _demo_stages.train

  def train_plainly(*args, **kwargs):
    jax.config.update("jax_disable_most_optimizations", True)
    try:
      return train(*args, **kwargs)
    finally:
      jax.config.update("jax_disable_most_optimizations", False)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_demo_stages, "train", train_plainly)
    patch.setattr(_demo_stages, "TIMED_ROUNDS", 1)
    patch.setattr(demo, "STUDENT_STEPS", (4, 1))
    # scanned blocks compile in a quarter of the time
    read = functools.partial(_demo_stages.read_config, scan=True)
    patch.setattr(_demo_stages, "read_config", read)
    yield patch


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, short):
  folder = tmp_path_factory.mktemp("demo")
  assert cli.main(["demo", f"--workdir={folder}", *FLAGS]) == 0
  return folder


def test_metrics_hold_the_contract(workdir):
  metrics = json.loads((workdir / "metrics.json").read_text())
  assert set(metrics) == {"teacher", "students", "reward", "wall_seconds"}
  rows = {row["name"]: row for row in metrics["students"]}
  for row in [metrics["teacher"], *rows.values()]:
    assert set(row) >= ROW
  assert metrics["teacher"]["network_evaluations"] == 100
  for steps in demo.STUDENT_STEPS:
    assert rows[f"student-{steps}"]["network_evaluations"] == steps
  # a hundred evaluations against one: nowhere near equal, however noisy
  assert rows["student-1"]["speedup_over_teacher"] > 10
  assert set(metrics["reward"]) == {
    "name",
    "student_before",
    "student_after",
    "lrm_spearman",
  }


def test_embedded_teacher_knows_its_captions(workdir):
  metrics = json.loads((workdir / "metrics.json").read_text())
  assert metrics["teacher"]["caption_accuracy"] > 0.8
  assert metrics["teacher"]["frechet"] < 4  # 80 clips; 0.9 with 400


def test_report_is_one_file_with_clips_and_curves(workdir):
  page = (workdir / "report.html").read_text()
  assert len(page) < 20e6
  assert "data:video/mp4" in page or "data:image/webp" in page
  assert page.count("<svg") >= 4
  assert "student-4-reward" in page
  assert (workdir / "clips.png").read_bytes().startswith(b"\x89PNG")
  outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
  assert not outside


def test_a_second_run_trains_nothing_again(workdir, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("a finished stage was trained again")

  monkeypatch.setattr(
    "dollar_jax.train.distill_task.DistillTask.update", refuse
  )
  assert cli.main(["demo", f"--workdir={workdir}", *FLAGS]) == 0


def test_samples_must_cover_every_caption_equally(tmp_path, capsys):
  code = cli.main(["demo", f"--workdir={tmp_path}", "--samples=100"])
  assert code == 1
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert "--samples is 100" in last
  assert "multiple of the 40" in last


def test_summary_over_seeds_is_mean_and_standard_error():
  runs = [{"name": "x", "steps": 4, "frechet": f} for f in (1.0, 2.0, 3.0)]
  row = demo.summarise("x", runs)
  assert row["frechet"] == 2.0
  assert row["frechet_seed_error"] == pytest.approx(1 / 3**0.5)


def test_reward_gain_is_in_errors_of_all_clips():
  def runs(*rewards):
    return [{"true_reward": r, "true_reward_error": 0.1} for r in rewards]

  rows = {"A": runs(0.0, 1.0), "B": runs(1.0, 3.0)}
  found = demo.reward_gain(rows, "A", "B")
  assert found["gain"] == pytest.approx(1.5)
  # four means of error 0.1 in two differences: sqrt(2) 0.1 each, halved by 2
  assert found["standard_error"] == pytest.approx(0.1)
  assert found["gain_in_standard_errors"] == pytest.approx(15)


def test_only_commands_are_listed(capsys):
  assert cli.main(["--help"]) == 0
  assert "demo_" not in capsys.readouterr().out


def test_ablation_report_has_a_row_for_every_setting(tmp_path):
  def run(name, reward):
    row = {
      "name": name,
      "steps": 4,
      "frechet": 1.25,
      "true_reward": reward,
      "true_reward_error": 0.01,
    }
    return row | ({"lrm_spearman": 0.9} if "LRM" in name else {})

  settings = ["teacher", *demo.ABLATION]
  runs = {n: [run(n, i), run(n, i + 0.5)] for i, n in enumerate(settings)}
  result = {
    "seeds": 2,
    "settings": [demo.summarise(n, rows) for n, rows in runs.items()],
    "reward_gains": [demo.reward_gain(runs, "VSD", "VSD+LRM")],
  }
  write_ablation_report(tmp_path, result)
  table = (tmp_path / "table.md").read_text().splitlines()
  assert [line.split("|")[1].strip() for line in table[2:]] == settings
  assert "1.250 ± 0.000" in table[2]
  assert table[-1].endswith("| 0.900 ± 0.000 |")
  assert "gain in standard errors" in (tmp_path / "report.html").read_text()
