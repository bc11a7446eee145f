"""The stages of the demo, each kept in its own folder of the workdir."""

import dataclasses
import runpy
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import intervals
from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.programs._digits_panel import DigitsPanel
from dollar_jax.rewards.base import get_reward
from dollar_jax.train import metrics as metrics_log
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.models import open_model
from dollar_jax.train.runs import train

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
REWARD = "jpeg_compressibility"
TIMED_BATCH, TIMED_ROUNDS = 64, 5
REAL_SEED = 2  # the panel's reference has another


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
    self.workdir, self._scale = on_disk(workdir), scale
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


def last_spearman(folder: Path) -> float:
  """Rank correlation of latent and true reward on the last fresh samples."""
  found = [
    row["lrm_spearman"]
    for row in metrics_log.read(str(folder))
    if "lrm_spearman" in row
  ]
  return found[-1]
