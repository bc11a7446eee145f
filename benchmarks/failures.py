"""What a distillation looks like that goes well, and five that do not.

  python -m benchmarks.failures --out=DIR

Students of the embedded digits, one healthy and five each with one setting made
wrong, looked at every 20 updates. Writes DIR/failures.json, and of each run a
plot and a sheet of clips. A run that is finished is kept. Forty minutes on two
cores that had other work, too; docs/failures.md shows what came of it.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from tqdm import tqdm

from benchmarks.rewards_on_digits import CLIPS_SEED, read
from dollar_jax.data import moving_digits
from dollar_jax.evaluation import plots
from dollar_jax.interop.folders import write_json
from dollar_jax.programs._digits_panel import DigitsPanel
from dollar_jax.rewards.base import get_reward
from dollar_jax.train import metrics
from dollar_jax.train.config import CheckpointConfig, TrainConfig
from dollar_jax.train.loop import CONFIG
from dollar_jax.train.models import RECIPE, open_model
from dollar_jax.train.runs import train

HEALTHY = "healthy"
FAILURES: dict[str, dict[str, dict[str, Any]]] = {
  "collapse": {
    "optimizer": {"learning_rate": 1e-3},
    "distill": {
      "cd_weight": 0.0,
      "cd_warmup": 0,
      "score_warmup": 0,
      "score_steps": 1,
    },
  },
  "over-saturation": {"distill": {"guidance": 8.0}},
  "lagging-critic": {
    "score_optimizer": {"learning_rate": 6e-6},
    "distill": {"score_warmup": 0},
  },
  "hacked-reward": {"distill": {"reward_weight": 5.0}},
  "wrong-convention": {"distill": {"guidance": 0.5}},
}
"""Name of a failure → the entries of the healthy config that make it."""

LOOK = 20
"""Updates between two looks."""

SAMPLES = 200
SHOWN = 6
BRIGHT = 250
"""A pixel that is at least so bright counts as saturated."""

SEEN = {
  "caption_accuracy": "captions right",
  "frechet": "Fréchet distance",
  "diversity": "diversity",
  "saturated": "share of saturated pixels",
  "reward": "reward: −kB of JPEG",
}
LOGGED = {
  "score_loss": "fake score: denoising loss",
  "vsd_force": "VSD gradient, RMS",
  "grad_norm": "student: gradient norm",
}
MARGIN = 0.2
"""By how much of it a number has to leave what healthy runs show."""

Rows = Sequence[Mapping[str, float]]


def settings(name: str, folder: Path, seed: int = 0) -> TrainConfig:
  """The config of a run; a reward is climbed from the healthy student."""
  changes = FAILURES.get(name, {})
  kind = (
    "reward" if "reward_weight" in changes.get("distill", {}) else "student"
  )
  config = read(kind, seed=seed)
  if kind == "reward":
    student = str(folder / HEALTHY)
    config = dataclasses.replace(config, student=student, steps=100)
  parts = {
    part: dataclasses.replace(getattr(config, part), **entries)
    for part, entries in changes.items()
  }
  kept = CheckpointConfig(every=LOOK, keep=config.steps)
  return dataclasses.replace(config, checkpoint=kept, **parts)


def look(
  frames: np.ndarray, prompts: list[str], panel: DigitsPanel
) -> dict[str, float]:
  """What clips of a student are like, `SEEN`."""
  row = panel(frames, prompts)
  return {
    **{key: float(row[key]) for key in SEEN if key in row},
    "saturated": saturated(frames),
    "reward": float(
      np.mean(get_reward("jpeg_compressibility")(frames, prompts))
    ),
  }


def saturated(frames: np.ndarray) -> float:
  """Share of the pixels of clips uint8 [N, F, H, W, 3] that are saturated."""
  return float((frames >= BRIGHT).mean())


def run_one(name: str, folder: Path, panel: DigitsPanel) -> dict[str, Any]:
  """Trains a run, and looks at each of its checkpoints.

  Returns:
    "looks", a row of `SEEN` and `LOGGED` each; the last clips are kept beside.
  """
  workdir = folder / name
  file = workdir / "looks.json"
  if file.exists():
    return json.loads(file.read_text())
  config = settings(name, folder)
  train(config, str(workdir), True, str(folder / "data"))
  captions = moving_digits.all_captions()
  prompts = [captions[i % len(captions)] for i in range(SAMPLES)]
  looks, log = [], metrics.read(str(workdir))
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
  for step in tqdm(steps, f"look at {name}", disable=None):
    model = open_model(str(_at(workdir, step)))
    clips = model.generate(prompts, CLIPS_SEED)
    row = {"step": step, **look(clips, prompts, panel)}
    for key in LOGGED:
      near = [
        r[key] for r in log if step - LOOK < r["step"] <= step and key in r
      ]
      if near:
        row[key] = float(np.mean(near))
    looks.append(row)
  np.save(workdir / "clips.npy", clips[: len(captions)])
  shutil.rmtree(workdir / "at")
  shutil.rmtree(workdir / "checkpoints")  # a student is 40 MB a look
  write_json(file, {"name": name, "looks": looks})
  return json.loads(file.read_text())


def _at(workdir: Path, step: int) -> Path:
  """The run as it was at a checkpoint, for `open_model`."""
  folder = workdir / "at"
  shutil.rmtree(folder, ignore_errors=True)
  (folder / "checkpoints").mkdir(parents=True)
  for name in (CONFIG, RECIPE):
    shutil.copy(workdir / name, folder)
  place = workdir / "checkpoints" / str(step)
  (folder / "checkpoints" / str(step)).symlink_to(place)
  return folder


def departures(
  looks: Rows, healthy: Rows, goes_on: bool = False
) -> dict[str, int]:
  """Step at which each number leaves what the healthy run shows, for good.

  What it shows is the span of its looks from that step on, of the last three
  at least, widened by `MARGIN`.

  Args:
    looks: of the failing run, in order.
    healthy: of the healthy run.
    goes_on: whether the failing run began where the healthy one ended.
  """
  left: dict[str, int] = {}
  last = healthy[-3]["step"]
  for row in looks:
    begin = last if goes_on else min(row["step"], last)
    for key in (*SEEN, *LOGGED):
      known = [h[key] for h in healthy if h["step"] >= begin and key in h]
      if key not in row or not known:
        continue
      low, high = min(known), max(known)
      room = MARGIN * max(abs(low), abs(high))
      if low - room <= row[key] <= high + room:
        left.pop(key, None)
      else:
        left.setdefault(key, int(row["step"]))
  return left


def draw(name: str, folder: Path, looks: Rows, healthy: Rows) -> None:
  """Writes the plot and the sheet of clips of a run."""
  titles = {
    key: title
    for key, title in (SEEN | LOGGED).items()
    if any(key in row for row in looks)
  }
  runs = {HEALTHY: healthy} | ({name: looks} if name != HEALTHY else {})
  figure = plots.curves_of_runs(runs, titles, columns=4)
  with mpl.rc_context({"savefig.facecolor": "white"}):
    figure.savefig(folder / f"{name}.png", dpi=80)
  captions = moving_digits.all_captions()
  chosen = np.arange(SHOWN) * 7 % len(captions)
  clips = np.stack([np.load(folder / run / "clips.npy") for run in runs])
  sheet = plots.contact_sheet(
    clips[:, chosen], list(runs), [captions[i] for i in chosen]
  )
  (folder / f"{name}-clips.png").write_bytes(sheet)


def table(found: Mapping[str, Mapping[str, Any]], real: Mapping) -> str:
  """The last look of every run in Markdown, and what told of it first."""
  lines = [
    "| run | " + " | ".join(SEEN.values()) + " | first seen in |",
    "|---|" + "---|" * (len(SEEN) + 1),
  ]
  rows = {"real clips": {"looks": [real], "left": {}}} | dict(found)
  for name, run in rows.items():
    cells = [f"{run['looks'][-1][key]:.3f}" for key in SEEN]
    left = sorted(run["left"].items(), key=lambda pair: pair[1])
    words = SEEN | LOGGED
    told = ", ".join(f"{words[key]} ({step})" for key, step in left[:3])
    lines.append(f"| {name} | {' | '.join(cells)} | {told or '–'} |")
  return "\n".join(lines)


def main() -> None:
  """Runs what has not been run, draws and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder to write to")
  parser.add_argument("--only", nargs="*", default=list(FAILURES))
  args = parser.parse_args()
  folder, panel = Path(args.out).resolve(), DigitsPanel()
  found = {name: run_one(name, folder, panel) for name in (HEALTHY, *args.only)}
  healthy = found[HEALTHY]["looks"]
  for name, run in found.items():
    goes_on = bool(settings(name, folder).student)
    run["left"] = departures(run["looks"], healthy, goes_on)
    draw(name, folder, run["looks"], healthy)
  clips = panel.real
  some = slice(0, SAMPLES)
  real = look(clips.frames[some], list(clips.captions[some]), panel)
  write_json(folder / "failures.json", {"real": real, **found})
  print(table(found, real))


if __name__ == "__main__":
  main()
