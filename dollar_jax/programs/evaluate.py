"""Judge a folder of videos: rewards, flicker, Fréchet distance, diversity.

  dollar evaluate --videos=clips --rewards=jpeg_size,sharpness --out=scores.json
  dollar evaluate --videos=clips --reference=real --out=scores.json

Prompts are read from metadata.jsonl, or from file names {prompt}-{index}.mp4.
Clips of the embedded digits model are judged on digit and direction too, and
compared with held-out real clips.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.data.videos import list_videos, read_video
from dollar_jax.evaluation import intervals
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge
from dollar_jax.evaluation.scorecard import evaluate_clips
from dollar_jax.interop.folders import write_json
from dollar_jax.rewards.base import get_reward
from dollar_jax.rewards.scoring import score

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "videos", None, "Folder of .mp4 files.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
  "reference",
  None,
  "Folder of real .mp4 files to compare with; for the digits model, held-out "
  "real clips if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "rewards",
  ["temporal_flickering"],
  "Rewards, comma-separated: names, or MODULE:FUNCTION.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "out", None, "JSON file to write.", required=True, flag_values=FLAGS
)

_HELD_OUT = 2000
_HELD_OUT_SEED = 1
_JUDGE_SEED = 1000


class DigitsPanel:
  """The judge of moving digits with its held-out real clips.

  Attributes:
    judge: the classifier and feature extractor.
    reference: features [2000, D] of real clips no training has seen.
  """

  def __init__(self):
    """Loads the judge and looks at the held-out clips."""
    self.judge = ClipJudge.load(EMBEDDED)
    real = moving_digits.make_clips("test", _HELD_OUT, _HELD_OUT_SEED)
    self.reference = self.judge.features(real.frames)

  def __call__(
    self,
    frames: np.ndarray,
    captions: list[str],
    reference: np.ndarray | None = None,
  ) -> dict[str, Any]:
    """Judges clips.

    Args:
      frames: uint8 [N, 8, 32, 32, 3].
      captions: N captions of the digits model.
      reference: features of real clips; None takes the held-out ones.

    Raises:
      ValueError: for a caption that the digits model does not know.
    """
    labels = np.array([moving_digits.parse_caption(c) for c in captions])
    real = self.reference if reference is None else reference
    return evaluate_clips(self.judge, frames, *labels.T, captions, real)


def fit_judge(folder: str, clips: int = 4000) -> dict[str, float]:
  """Fits the judge anew on real clips of training digits, and saves it.

  Returns:
    Its accuracies on held-out clips of unseen digit images.
  """
  real = moving_digits.make_clips("train", clips, _JUDGE_SEED)
  judge = ClipJudge.fit(real.frames, real.digits, real.directions)
  judge.save(folder)
  held_out = moving_digits.make_clips("test", _HELD_OUT, _HELD_OUT_SEED)
  found = judge.verdict(held_out.frames)
  digit = found.digits == held_out.digits
  direction = found.directions == held_out.directions
  return {
    "digit": float(digit.mean()),
    "direction": float(direction.mean()),
    "caption": float((digit & direction).mean()),
  }


def read_folder(folder: str) -> tuple[list[np.ndarray], list[str]]:
  """All clips of a folder, uint8 [F, H, W, 3] each, and their prompts.

  Raises:
    ValueError: if there is none, or one cannot be read.
  """
  videos = list_videos(folder)
  # None: where stderr is no terminal
  bar = tqdm(videos, f"read {Path(folder).name}", unit="video", disable=None)
  return [read_video(file)[0] for file, _ in bar], [p for _, p in videos]


def is_digits(clips: list[np.ndarray]) -> bool:
  """Whether all clips have the size of the embedded digits model's."""
  size = (moving_digits.FRAMES, moving_digits.SIZE, moving_digits.SIZE, 3)
  return all(clip.shape == size for clip in clips)


def score_rewards(
  names: list[str], clips: list[np.ndarray], prompts: list[str]
) -> dict[str, Any]:
  """Mean of each reward over the clips, with its standard error.

  Raises:
    ValueError: if there is no such reward.
  """
  rewards = [get_reward(name) for name in names]
  out = {}
  for reward in rewards:
    values, failed = [], 0
    bar = tqdm(clips, reward.name, unit="video", disable=None)
    for clip, prompt in zip(bar, prompts, strict=True):
      value, failures = score(reward, clip[None], [prompt])
      values.append(float(value[0]))
      failed += failures.count
    good = np.array([v for v in values if np.isfinite(v)])
    out[reward.name] = {
      "mean": float(good.mean()) if len(good) else None,
      "standard_error": intervals.standard_error(good)
      if len(good) > 1
      else None,
      "samples": len(good),
      "failed": failed,
    }
  return out


def main(values: flags.FlagValues) -> None:
  """Judges the videos and writes the JSON file.

  Raises:
    ValueError: for a folder without videos, or an unknown reward.
  """
  for name in values.rewards:
    get_reward(name)  # before anything that takes time
  clips, prompts = read_folder(values.videos)
  result: dict[str, Any] = {
    "videos": len(clips),
    "prompts": len(set(prompts)),
    "rewards": score_rewards(values.rewards, clips, prompts),
  }
  judged = is_digits(clips) and set(prompts) <= set(
    moving_digits.all_captions()
  )
  if values.reference and not judged:
    raise ValueError(
      f"--reference needs a feature extractor, and {values.videos} holds no "
      "clips of the digits model (8 frames of 32x32 with its captions); leave "
      "--reference out"
    )
  if judged and len(set(prompts)) == len(prompts):
    print("Fréchet distance and the like need two clips of a caption or more")
  elif judged:
    result |= _judge_digits(clips, prompts, values.reference)
  write_json(Path(values.out), result)
  for name, value in _rows(result):
    print(f"{name:32} {value}")


def _judge_digits(
  clips: list[np.ndarray], prompts: list[str], folder: str | None
) -> dict[str, Any]:
  panel, reference = DigitsPanel(), None
  if folder:
    real, _ = read_folder(folder)
    if not is_digits(real):
      raise ValueError(
        f"--reference={folder} holds clips of another size than the digits "
        "model's (8 frames of 32x32)"
      )
    reference = panel.judge.features(np.stack(real))
  return panel(np.stack(clips), prompts, reference)


def _rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
  rows = []
  for name, value in result.items():
    if isinstance(value, dict):
      rows += _rows(value, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
      rows.append((prefix + name, ", ".join(f"{v:.4g}" for v in value)))
    elif isinstance(value, float):
      rows.append((prefix + name, f"{value:.4g}"))
    else:
      rows.append((prefix + name, str(value)))
  return rows
