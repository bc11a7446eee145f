"""Three unlike rewards on the digits: the latent reward model beside DDPO.

  python benchmarks/rewards_on_digits.py --workdir=runs/rewards [--seeds=3]

Tunes the 4-step student of each seed to a reward of frames, one of clips and
one that reads the captions, through the latent reward model and by a policy
gradient, which is given more calls of the reward and more time (of the
processor: other work on the machine does not count). Before and after, a
student draws the same prompts and noise, which no run has seen, and the clips
are compared in pairs, with what was not optimised beside what was. What is
finished in the workdir is not done again.
"""

import argparse
import dataclasses
import json
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import intervals
from dollar_jax.interop.folders import write_json
from dollar_jax.programs._digits_panel import DigitsPanel
from dollar_jax.rewards.base import get_reward
from dollar_jax.train import metrics
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.models import open_model
from dollar_jax.train.runs import train

CONFIGS = Path(__file__).parents[1] / "configs" / "digits"

REWARDS = ("reward", "reward_flicker", "reward_caption")
"""Configs whose rewards are climbed."""

DDPO_UPDATES = 150

CLIPS_SEED = 1000
"""Of the noise of the clips that are judged, with the run's seed."""

WATCHED = ("frechet", "caption_accuracy", "diversity", "motion")


def read(name: str, **changes: Any) -> TrainConfig:
  """A config of configs/digits with changed entries."""
  values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
  return dataclasses.replace(from_config_dict(values.to_dict()), **changes)


def settings(seed: int, workdir: Path) -> dict[str, TrainConfig]:
  """The runs of a seed, by the folders they get."""
  start = {"seed": seed, "student": str(workdir / f"student-{seed}")}
  runs = {}
  for name in REWARDS:
    latent = read(name, **start)
    policy = read("reward_ddpo", **start, steps=DDPO_UPDATES)
    reward = latent.reward.name
    runs[f"{reward}-latent-{seed}"] = latent
    runs[f"{reward}-ddpo-{seed}"] = dataclasses.replace(
      policy, reward=latent.reward
    )
  return runs


def calls(config: TrainConfig) -> int:
  """Clips that a run has scored."""
  c, r = config.distill, config.reward
  if c.ddpo_weight:
    return config.steps * -(-config.data.batch_size // (c.num_steps - 1))
  return r.warmup_labels + config.steps // r.every * r.labels


def judge(folder: Path, panel: DigitsPanel, seed: int, samples: int) -> dict:
  """What a student's clips are worth: [N] of a reward, numbers of the set."""
  captions = moving_digits.all_captions()
  prompts = [captions[i % len(captions)] for i in range(samples)]
  clips = open_model(str(folder)).generate(prompts, CLIPS_SEED + seed)
  names = {read(name).reward.name for name in REWARDS} | {WATCHED[-1]}
  row = panel(clips, prompts)
  return {name: row[name] for name in WATCHED[:-1]} | {
    name: np.asarray(get_reward(name)(clips, prompts)) for name in names
  }


def compare(
  name: str, config: TrainConfig, before: dict, after: dict, folder: Path
) -> dict[str, Any]:
  """One run's row."""
  reward = config.reward.name
  gain = after[reward] - before[reward]
  log = metrics.read(str(folder))
  spearman = [r["lrm_spearman"] for r in log if "lrm_spearman" in r]
  row = {
    "run": name,
    "reward": reward,
    "method": "DDPO" if config.distill.ddpo_weight else "latent model",
    "seed": config.seed,
    "calls": calls(config),
    "before": float(before[reward].mean()),
    "gain": float(gain.mean()),
    "standard_error": intervals.standard_error(gain),
    "deviation": float(before[reward].std()),
    "spearman": spearman[-1] if spearman else None,
  }
  for watched in WATCHED:
    for when, found in (("before", before), ("after", after)):
      row[f"{watched}_{when}"] = float(np.mean(found[watched]))
  return row


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Trains what is not trained, judges what is not judged."""
  workdir, panel = Path(args.workdir).resolve(), DigitsPanel()
  rows = []
  for seed in range(args.seeds):
    data, student = str(workdir / "data"), workdir / f"student-{seed}"
    train(read("student", seed=seed), str(student), data_folder=data)
    before = None
    for name, config in settings(seed, workdir).items():
      folder = workdir / name
      file = folder / "row.json"
      if not file.exists():
        if before is None:
          before = judge(student, panel, seed, args.samples)
        began, fresh = time.process_time(), not folder.exists()
        print(f"{name}:", flush=True)
        train(config, str(folder), data_folder=data)
        seconds = time.process_time() - began if fresh else None
        after = judge(folder, panel, seed, args.samples)
        row = compare(name, config, before, after, folder)
        write_json(file, row | {"seconds": seconds})
      rows.append(json.loads(file.read_text()))
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Means over the seeds in Markdown; errors are of the pairs of clips."""
  titles = ["reward", "by", "calls", "CPU s", "gain", "in errors"]
  titles += ["in deviations", "Spearman", *WATCHED]
  lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
  kinds = dict.fromkeys((row["reward"], row["method"]) for row in rows)
  for kind in kinds:
    runs = [r for r in rows if (r["reward"], r["method"]) == kind]
    gain = np.mean([r["gain"] for r in runs])
    error = np.linalg.norm([r["standard_error"] for r in runs]) / len(runs)
    least = min(r["gain"] / r["standard_error"] for r in runs)
    part = np.mean([r["gain"] / r["deviation"] for r in runs])
    times = [r["seconds"] for r in runs if r["seconds"]]
    ranks = [f"{r['spearman']:.2f}" for r in runs if r["spearman"] is not None]
    cells = [
      *kind,
      runs[0]["calls"],
      f"{np.mean(times):.0f}" if times else "",
      f"{gain:+.4f} ± {error:.4f}",
      f"{gain / error:.0f} (least {least:.0f})",
      f"{part:+.2f}",
      ", ".join(ranks),
    ]
    for name in WATCHED:
      pair = [
        np.mean([r[f"{name}_{w}"] for r in runs]) for w in ("before", "after")
      ]
      cells.append("{:.3f} → {:.3f}".format(*pair))
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--samples", type=int, default=2000)
  arguments = parser.parse_args()
  print(table(run(arguments)))
