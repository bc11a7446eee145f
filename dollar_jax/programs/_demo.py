"""The main job on embedded data, as `dollar demo` runs it."""

import time
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import intervals
from dollar_jax.interop.folders import write_json
from dollar_jax.programs._demo_report import (
  write_ablation_report,
  write_demo_report,
)
from dollar_jax.programs._demo_stages import REWARD, Demo, last_spearman

FEW_STEPS = 4
FEWER_STEPS = {"cd_warmup": 100, "time_low": 0.4}
"""Below `FEW_STEPS`, a student's clips are so far from the teacher's that the
two distributions overlap at the noisier score times only."""
FEWER_STEPS_UPDATES = 180
STUDENT_STEPS = (4, 2, 1)
ABLATION = {
  "VSD": {"cd_weight": 0.0, "cd_warmup": 0},
  "CD": {"vsd_weight": 0.0, "cd_warmup": 0},
  "VSD+CD": {},
  "VSD+LRM": {"cd_weight": 0.0},
  "VSD+CD+LRM": {},
}


def run_demo(demo: Demo) -> dict[str, Any]:
  """Distils, tunes, judges; returns what metrics.json holds."""
  began = time.perf_counter()
  models = {"teacher": demo.teacher}
  for steps in STUDENT_STEPS:
    name = f"student-{steps}"
    changes: dict[str, Any] = {"distill": {"num_steps": steps}}
    if steps < FEW_STEPS:
      changes["distill"] |= FEWER_STEPS
      changes["steps"] = FEWER_STEPS_UPDATES
    models[name] = demo.distil(name, **changes)
  tuned = "student-4-reward"
  models[tuned] = demo.tune(tuned, "student-4")
  for steps in STUDENT_STEPS:
    recipe = demo.teacher.recipe.as_teacher(steps, demo.teacher.recipe.guidance)
    name = f"teacher-{steps}-undistilled"
    models[name] = demo.teacher.with_params(demo.teacher.params, recipe)

  rows, clips = {}, {}
  for name, model in tqdm(models.items(), desc="judge", unit="model"):
    rows[name], clips[name] = demo.judge(name, model)
  seconds = demo.time(models)
  for name, row in rows.items():
    row["seconds_per_video"] = seconds[name]
    row["speedup_over_teacher"] = seconds["teacher"] / seconds[name]
  result = {
    "teacher": rows["teacher"],
    "students": [row for name, row in rows.items() if name != "teacher"],
    "reward": {
      "name": REWARD,
      "student_before": rows["student-4"]["true_reward"],
      "student_after": rows[tuned]["true_reward"],
      "lrm_spearman": last_spearman(demo.workdir / tuned),
    },
    "wall_seconds": time.perf_counter() - began,
  }
  write_demo_report(
    demo.workdir,
    result,
    clips,
    demo.judge_real(),
    demo.prompts,
    demo.teacher.recipe.fps,
  )
  return result


def run_ablation(demo: Demo, seeds: int) -> dict[str, Any]:
  """The paper's ablation on 4-step students: mean and standard error."""
  began = time.perf_counter()
  rows: dict[str, list[dict[str, Any]]] = {"teacher": []}
  for seed in range(seeds):
    rows["teacher"].append(demo.judge("teacher", demo.teacher, seed)[0])
    for name, losses in ABLATION.items():
      folder = f"seed-{seed}-{name}"
      if name.endswith("+LRM"):
        before = folder.removesuffix("+LRM")
        model = demo.tune(folder, before, seed=seed, distill=losses)
      else:
        model = demo.distil(folder, seed=seed, distill=losses)
      row, _ = demo.judge(name, model, seed)
      if name.endswith("+LRM"):
        row["lrm_spearman"] = last_spearman(demo.workdir / folder)
      rows.setdefault(name, []).append(row)
  result = {
    "seeds": seeds,
    "settings": [summarise(name, runs) for name, runs in rows.items()],
    "runs": rows,
    "reward_gains": [
      reward_gain(rows, name, f"{name}+LRM") for name in ("VSD", "VSD+CD")
    ],
    "wall_seconds": time.perf_counter() - began,
  }
  write_ablation_report(demo.workdir, result)
  return result


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Mean over seeds of every number of the rows, and its standard error."""
  out: dict[str, Any] = {"name": name, "seeds": len(runs)}
  for key, value in runs[0].items():
    if isinstance(value, float):
      values = np.array([run[key] for run in runs])
      out[key] = float(values.mean())
      if len(values) > 1:
        out[f"{key}_seed_error"] = intervals.standard_error(values)
  return out


def reward_gain(
  rows: dict[str, list[dict[str, Any]]], before: str, after: str
) -> dict[str, Any]:
  """How much more true reward the runs of one setting have than another's.

  Args:
    rows: setting → its runs, in the same order of seeds, each with
      "true_reward" and the "true_reward_error" of its clips.
    before: the setting without the reward.
    after: the setting with it.

  Returns:
    The mean gain over the seeds, its standard error from the clips of all
    seeds, and the gain in such errors.
  """
  pairs = list(zip(rows[before], rows[after], strict=True))
  gain = np.mean([b["true_reward"] - a["true_reward"] for a, b in pairs])
  errors = [row["true_reward_error"] for pair in pairs for row in pair]
  error = np.linalg.norm(errors) / len(pairs)
  return {
    "before": before,
    "after": after,
    "gain": float(gain),
    "standard_error": float(error),
    "gain_in_standard_errors": float(gain / error),
  }


def main(values: flags.FlagValues) -> None:
  """Runs the demo or the ablation.

  Raises:
    ValueError: for a number that does not fit, or outside a checkout.
    OSError: if the workdir cannot be written.
  """
  captions = len(moving_digits.all_captions())
  if values.samples % captions:
    raise ValueError(
      f"--samples is {values.samples}; it must be a multiple of the "
      f"{captions} captions"
    )
  demo = Demo(values.workdir, values.samples, values.scale)
  if values.from_scratch:
    demo.train_teacher()
  if values.ablation:
    result, name = run_ablation(demo, values.seeds), "ablation.json"
  else:
    result, name = run_demo(demo), "metrics.json"
  write_json(demo.workdir / name, result)
  rows = result.get("settings") or [result["teacher"], *result["students"]]
  print(f"{'':28} {'Fréchet':>8} {'captions':>9} {'diversity':>9}")
  for row in rows:
    print(
      f"{row['name']:28} {row['frechet']:8.2f} "
      f"{row['caption_accuracy']:9.1%} {row['diversity']:9.2f}"
    )
  print(f"{demo.workdir / 'report.html'} shows the clips; {name} the numbers")
