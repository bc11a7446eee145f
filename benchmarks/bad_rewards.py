"""Rewards that lie, never change, or fail: what they do to a student.

  python -m benchmarks.bad_rewards --workdir=runs/rewards

Tunes the digits' 4-step student, `student-0` of the workdir (made if it is not
there), to each, with a guard on what nobody optimises, and judges clips of the
same prompts and noise before and after. What is finished in the workdir is not
done again.
"""

import argparse
import dataclasses
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.rewards_on_digits import judge, read
from dollar_jax.interop.folders import write_json
from dollar_jax.programs._digits_panel import DigitsPanel
from dollar_jax.rewards.base import get_reward, register
from dollar_jax.train import metrics
from dollar_jax.train.config import GuardConfig, TrainConfig
from dollar_jax.train.runs import train

GUARD = GuardConfig(
  every=10,
  samples=256,
  watch=("caption_accuracy", "temporal_flickering"),
  features="digits",
  reward_fall=1.0,
)

_RNG = np.random.default_rng(0)


@register("noise_size", kind="image")
def noise_size(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """How much frames differ from their own median: more noise, more reward."""
  del prompts
  grey = frames.mean(axis=-1)
  smooth = ndimage.median_filter(grey, size=(1, 1, 3, 3))
  return np.abs(grey - smooth).mean(axis=(1, 2, 3))


@register("constant", kind="image")
def constant(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """One, whatever it is shown."""
  return np.ones(len(frames))


@register("heavy_tailed", kind="image")
def heavy_tailed(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Small JPEGs, and an error whose variance is infinite."""
  good = get_reward("jpeg_compressibility")(frames, prompts)
  return good + 0.02 * _RNG.standard_cauchy(len(frames))


@register("raises_in_30_percent", kind="image")
def raises_in_30_percent(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Small JPEGs, if the service answers."""
  if _RNG.random() < 0.3:
    raise ConnectionError("no answer")
  return get_reward("jpeg_compressibility")(frames, prompts)


RUNS = {
  "lies": ("noise_size", {"reward_weight": 2.0}, 200),
  "constant": ("constant", {}, 60),
  "binary": ("caption_accuracy", {}, 60),
  "heavy tails": ("heavy_tailed", {}, 60),
  "raises": ("raises_in_30_percent", {}, 60),
}
"""What is wrong → the reward, changes of `distill`, and updates. The liar is
given ten times the weight, so that there is something to stop."""


def settings(name: str, workdir: Path) -> TrainConfig:
  """The run of a bad reward."""
  reward, changes, steps = RUNS[name]
  config = read("reward", student=str(workdir / "student-0"), steps=steps)
  watch = tuple(w for w in GUARD.watch if w != reward)
  return dataclasses.replace(
    config,
    distill=dataclasses.replace(config.distill, **changes),
    reward=dataclasses.replace(config.reward, name=reward),
    guard=dataclasses.replace(GUARD, watch=watch),
  )


def run_one(name: str, workdir: Path, before: dict, samples: int) -> dict:
  """Trains, listens to what is said, judges."""
  folder = workdir / f"bad-{name.replace(' ', '-')}"
  file = folder / "row.json"
  if file.exists():
    return json.loads(file.read_text())
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  logger = logging.getLogger("absl")
  logger.addHandler(handler)
  print(f"{name}:", flush=True)
  train(settings(name, workdir), str(folder), False, str(workdir / "data"))
  logger.removeHandler(handler)
  after = judge(folder, DigitsPanel(), 0, samples)
  rows = metrics.read(str(folder))
  row: dict[str, Any] = {"name": name, "steps": max(r["step"] for r in rows)}
  row["failures"] = max(r.get("label_failures", 0) for r in rows)
  told = said.getvalue().splitlines()
  row["said"] = told[-1] if told else ""
  for key in ("caption_accuracy", "frechet"):
    row[key] = [float(before[key]), float(after[key])]
  write_json(file, row)
  return row


def main(args: argparse.Namespace) -> None:
  """Prints a table in Markdown, and what each run said."""
  workdir = Path(args.workdir).resolve()
  student = workdir / "student-0"
  train(read("student", seed=0), str(student), True, str(workdir / "data"))
  before = judge(student, DigitsPanel(), 0, args.samples)
  rows = [run_one(name, workdir, before, args.samples) for name in RUNS]
  print("| reward | updates | labels that failed | captions right | Fréchet |")
  print("|---|---|---|---|---|")
  for row in rows:
    was, now = row["caption_accuracy"]
    far, near = row["frechet"]
    print(
      f"| {row['name']} | {row['steps']} | {row['failures']:.0f} | "
      f"{was:.3f} → {now:.3f} | {far:.2f} → {near:.2f} |"
    )
  for row in rows:
    print(f"{row['name']}: {row['said']}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--samples", type=int, default=2000)
  main(parser.parse_args())
