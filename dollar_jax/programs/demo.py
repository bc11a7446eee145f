"""The whole method on embedded data: teacher, students, reward, report.

  dollar demo --workdir=runs/demo
  dollar demo --workdir=runs/ablation --ablation --seeds=3

Distils the embedded teacher (moving digits, 50 guided steps) into students of
4, 2 and 1 step with VSD + 0.5 CD, tunes the 4-step student to a reward that
cannot be differentiated (smaller JPEGs), judges all of them with networks
that training never sees, and writes report.html and metrics.json. What is
finished in the workdir is not done again.
"""

import dataclasses
import json
import runpy
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import intervals
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.programs.demo_report import (
  write_ablation_report,
  write_demo_report,
)
from dollar_jax.programs.evaluate import DigitsPanel
from dollar_jax.rewards.base import get_reward
from dollar_jax.train import metrics as metrics_log
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.runs import open_model, train

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "workdir", None, "Folder of the demo.", required=True, flag_values=FLAGS
)
flags.DEFINE_bool(
  "from_scratch",
  False,
  "Train the teacher anew (about 20 minutes on 2 cores).",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "ablation",
  False,
  "Compare VSD, CD, VSD+CD, VSD+LRM and VSD+CD+LRM instead.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "seeds", 3, "Seeds of the ablation.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
  "samples", 400, "Clips judged a model.", lower_bound=80, flag_values=FLAGS
)
flags.DEFINE_float(
  "scale",
  1.0,
  "Share of the configs' updates and labels to spend; small for a quick look.",
  lower_bound=0.0,
  upper_bound=1.0,
  flag_values=FLAGS,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
FEW_STEPS = 4
FEWER_STEPS = {"cd_warmup": 100, "score_warmup": 60, "time_low": 0.4}
"""Below `FEW_STEPS`, a student that starts as the teacher is so far from the
data that VSD collapses it: consistency comes first, and then VSD at the noisier
score times, at which the two distributions overlap."""
FEWER_STEPS_UPDATES = 160
REWARD = "jpeg_compressibility"
STUDENT_STEPS = (4, 2, 1)
TEACHER_GUIDANCE = 2.0
TIMED_BATCH, TIMED_ROUNDS = 64, 5
REAL_SEED = 2  # the panel's reference has another
ABLATION = {
  "VSD": {"cd_weight": 0.0},
  "CD": {"vsd_weight": 0.0},
  "VSD+CD": {},
  "VSD+LRM": {"cd_weight": 0.0},
  "VSD+CD+LRM": {},
}


def read_config(name: str, scale: float, **changes: Any) -> TrainConfig:
  """A config of configs/digits, its work cut to `scale`, with changes.

  Args:
    name: the file's stem.
    scale: share of updates, warm-up labels and the like to keep.
    **changes: entries of the config; those of `distill` and `optimizer` are
      given as dicts.

  Raises:
    ValueError: if the configs are not there.
  """
  file = CONFIGS / f"{name}.py"
  if not file.exists():
    raise ValueError(
      f"{file} is missing; the demo runs from a checkout of the repository"
    )
  values = runpy.run_path(str(file))["get_config"]().to_dict()
  for key, change in changes.items():
    if isinstance(change, dict):
      values[key] = values.get(key, {}) | change
    else:
      values[key] = change
  config = from_config_dict(values)

  def cut(count: int) -> int:
    return max(int(count * scale), 1)

  def cut_warmup(optimizer: Any) -> Any:
    return dataclasses.replace(
      optimizer, warmup_steps=int(optimizer.warmup_steps * scale)
    )

  steps = cut(config.steps)
  log_every = min(config.log_every, steps)
  refresh = cut(config.reward.every)
  return dataclasses.replace(
    config,
    steps=steps,
    log_every=log_every,
    optimizer=cut_warmup(config.optimizer),
    score_optimizer=cut_warmup(config.score_optimizer),
    distill=dataclasses.replace(
      config.distill,
      cd_warmup=int(config.distill.cd_warmup * scale),
      score_warmup=int(config.distill.score_warmup * scale),
    ),
    reward=dataclasses.replace(
      config.reward,
      every=-(-refresh // log_every) * log_every,
      warmup_labels=cut(config.reward.warmup_labels),
      warmup_steps=cut(config.reward.warmup_steps),
    ),
  )


class Demo:
  """The stages of the demo, each kept in its own folder of the workdir.

  Attributes:
    workdir: the demo's folder.
    teacher: the model everything starts from.
    prompts: what is sampled to be judged, every caption equally often.
  """

  def __init__(self, workdir: str, samples: int, scale: float):
    """Opens teacher and judge.

    Args:
      workdir: the demo's folder; made if needed.
      samples: clips judged a model.
      scale: share of the configured work to spend.
    """
    self.workdir, self._scale = Path(workdir), scale
    self.workdir.mkdir(parents=True, exist_ok=True)
    captions = moving_digits.all_captions()
    self.prompts = [captions[i % len(captions)] for i in range(samples)]
    self._panel = DigitsPanel()
    self.teacher, self._teacher_name = open_model("embedded"), "embedded"

  def train_teacher(self) -> None:
    """Trains the teacher anew and uses it from here on."""
    self.teacher = self._train("teacher", read_config("teacher", self._scale))
    self._teacher_name = str(self.workdir / "teacher" / "model")

  def distil(self, name: str, **changes: Any) -> Pipeline:
    """Trains a student by configs/digits/student.py with changes."""
    changes = {"teacher": self._teacher_name} | changes
    return self._train(name, read_config("student", self._scale, **changes))

  def tune(self, name: str, student: str, **changes: Any) -> Pipeline:
    """Tunes the student of another stage by configs/digits/reward.py."""
    changes = {"teacher": self._teacher_name} | changes
    changes["student"] = str(self.workdir / student)
    return self._train(name, read_config("reward", self._scale, **changes))

  def _train(self, name: str, config: TrainConfig) -> Pipeline:
    print(f"{name}:", flush=True)
    folder = str(self.workdir / name)
    return train(config, folder, data_folder=str(self.workdir / "data"))

  def judge_real(self) -> dict[str, Any]:
    """The row of as many real clips that nothing was trained on."""
    real = moving_digits.make_clips("test", len(self.prompts), REAL_SEED)
    rewards = np.asarray(get_reward(REWARD)(real.frames, real.captions))
    row = self._panel(real.frames, real.captions)
    return row | {"true_reward": float(rewards.mean())}

  def judge(
    self, name: str, model: Pipeline, seed: int = 0
  ) -> tuple[dict[str, Any], np.ndarray]:
    """Samples a model and judges its clips.

    Returns:
      (a row of the table, the clips uint8 [N, F, H, W, 3]).
    """
    clips = model.generate(self.prompts, seed)
    rewards = np.asarray(get_reward(REWARD)(clips, self.prompts))
    row = {
      "name": name,
      "steps": model.recipe.steps,
      "network_evaluations": model.recipe.network_evaluations,
      **self._panel(clips, self.prompts),
      "true_reward": float(rewards.mean()),
      "true_reward_error": intervals.standard_error(rewards),
    }
    return row, clips

  def time(self, models: dict[str, Pipeline]) -> dict[str, float]:
    """Seconds a video, noise to pixels, medians of alternating rounds."""
    text, mask = self.teacher.encode(self.prompts[:TIMED_BATCH])
    names = [str(i) for i in range(TIMED_BATCH)]
    decode = jax.jit(self.teacher.codec.decode)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in tqdm(range(TIMED_ROUNDS + 1), desc="time the samplers"):
      for name, model in models.items():
        noises = jax.block_until_ready(model.draw_noise(names, turn))
        start = time.perf_counter()
        jax.block_until_ready(decode(model.sample_latents(text, mask, noises)))
        if turn:  # the first round compiles
          seconds[name].append(time.perf_counter() - start)
    return {k: float(np.median(v)) / TIMED_BATCH for k, v in seconds.items()}


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
    recipe = demo.teacher.recipe.as_teacher(steps, TEACHER_GUIDANCE)
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


def last_spearman(folder: Path) -> float:
  """Rank correlation of latent and true reward on the last fresh samples."""
  found = [
    row["lrm_spearman"]
    for row in metrics_log.read(str(folder))
    if "lrm_spearman" in row
  ]
  return found[-1]


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
  part = demo.workdir / f".{name}.part"
  part.write_text(json.dumps(result, indent=2) + "\n")
  part.replace(demo.workdir / name)
  rows = result.get("settings") or [result["teacher"], *result["students"]]
  print(f"{'':28} {'Fréchet':>8} {'captions':>9} {'diversity':>9}")
  for row in rows:
    print(
      f"{row['name']:28} {row['frechet']:8.2f} "
      f"{row['caption_accuracy']:9.1%} {row['diversity']:9.2f}"
    )
  print(f"{demo.workdir / 'report.html'} shows the clips; {name} the numbers")
