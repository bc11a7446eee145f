"""Judges a folder of videos, for `dollar evaluate`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.data.videos import list_videos, read_video
from dollar_jax.evaluation import comparison, intervals
from dollar_jax.interop.folders import write_json
from dollar_jax.programs._digits_panel import DigitsPanel
from dollar_jax.rewards.base import Reward, get_reward
from dollar_jax.rewards.features import DIGITS, FeatureFn, get_features
from dollar_jax.rewards.scoring import score

_DIGITS_SHAPE = (
  moving_digits.FRAMES,
  moving_digits.SIZE,
  moving_digits.SIZE,
  3,
)
_BATCH = 32
_BATCH_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Folder:
  """What was seen of a folder of clips, which are not kept.

  Attributes:
    prompts: N prompts.
    features: [N, D], or None where no extractor was given.
    scores: reward by reward N values, NaN where there is none.
    digits: uint8 [N, F, H, W, 3] if all look like clips of the digits model,
      else None.
  """

  prompts: list[str]
  features: np.ndarray | None
  scores: dict[str, np.ndarray]
  digits: np.ndarray | None


def look_at(
  folder: str, extract: FeatureFn | None, rewards: Sequence[Reward] = ()
) -> Folder:
  """Reads the clips of a folder, a few at a time.

  Raises:
    ValueError: if there is none, one cannot be read, or one is not fit for
      the extractor.
  """
  videos = list_videos(folder)
  prompts = [prompt for _, prompt in videos]
  features, digits = [], []
  scores: dict[str, list[float]] = {reward.name: [] for reward in rewards}
  with tqdm(
    total=len(videos),
    desc=Path(folder).name,
    unit="video",
    disable=None,  # where stderr is no terminal
  ) as bar:
    for clips, asked in _batches(videos):
      if extract:
        features.append(extract(clips))
      if clips.shape[1:] == _DIGITS_SHAPE:
        digits.append(clips)
      for clip, prompt in zip(clips, asked, strict=True):
        for reward in rewards:
          scores[reward.name] += score(reward, clip[None], [prompt])[0].tolist()
      bar.update(len(clips))
  known = set(prompts) <= set(moving_digits.all_captions())
  judged = known and sum(map(len, digits)) == len(videos)
  return Folder(
    prompts,
    np.concatenate(features) if features else None,
    {name: np.array(found) for name, found in scores.items()},
    np.concatenate(digits) if judged else None,
  )


def _batches(
  videos: list[tuple[Path, str]],
) -> Iterator[tuple[np.ndarray, list[str]]]:
  """Clips uint8 [B, F, H, W, 3] of one shape and their prompts, in order."""
  held: list[np.ndarray] = []
  prompts: list[str] = []
  for file, prompt in videos:
    clip, _ = read_video(file)
    most = min(_BATCH, _BATCH_BYTES // clip.nbytes)
    if held and (clip.shape != held[0].shape or len(held) >= most):
      yield np.stack(held), prompts
      held, prompts = [], []
    held.append(clip)
    prompts.append(prompt)
  yield np.stack(held), prompts


def _reward_row(values: np.ndarray) -> dict[str, Any]:
  """Mean of a reward with its interval, over the clips that have a value."""
  good = values[np.isfinite(values)]
  row = {"mean": None, "standard_error": None, "interval": None}
  if len(good):
    row["mean"] = float(good.mean())
  if len(good) > 1:
    row["standard_error"] = intervals.standard_error(good)
    row["interval"] = list(intervals.mean(good)[1:])
  return row | {"samples": len(good), "failed": len(values) - len(good)}


def main(values: flags.FlagValues) -> None:
  """Judges the videos and writes the JSON file.

  Raises:
    ValueError: for a folder without videos, or an unknown reward or extractor.
  """
  rewards = [get_reward(name) for name in values.rewards]
  name = values.features or (DIGITS if _of_digits(values.videos) else None)
  extract = get_features(name) if name else None
  if values.reference:
    list_videos(values.reference)  # before anything that takes time
  if values.reference and extract is None:
    raise ValueError(
      f"--reference={values.reference} needs a feature extractor, as "
      f"{values.videos} holds no clips of the digits model; give "
      "--features=videomae:FOLDER or thumbnails"
    )
  clips = look_at(values.videos, extract, rewards)
  result: dict[str, Any] = {
    "videos": len(clips.prompts),
    "prompts": len(set(clips.prompts)),
    "rewards": {
      reward: _reward_row(found) for reward, found in clips.scores.items()
    },
  }
  panel = DigitsPanel() if clips.digits is not None else None
  if panel and result["prompts"] < result["videos"]:
    result |= panel(clips.digits, clips.prompts)
  if extract is not None:
    result["features"] = name
    reference = _reference(values.reference, name, extract, panel)
    result |= comparison.compare(clips.features, clips.prompts, *reference)
  write_json(Path(values.out), result)
  print(table(result))


def _of_digits(folder: str) -> bool:
  """Whether captions and first clip are those of the digits model."""
  videos = list_videos(folder)
  known = {prompt for _, prompt in videos} <= set(moving_digits.all_captions())
  return known and read_video(videos[0][0])[0].shape == _DIGITS_SHAPE


def _reference(
  folder: str | None, name: str, extract: FeatureFn, panel: DigitsPanel | None
) -> tuple[np.ndarray | None, list[str] | None]:
  """Features [M, D] and captions of the real clips, if there are any."""
  if folder:
    real = look_at(folder, extract)
    return real.features, real.prompts
  if panel is None:
    return None, None
  features = panel.reference
  if name != DIGITS:
    starts = range(0, len(panel.real.frames), _BATCH)
    parts = [extract(panel.real.frames[i : i + _BATCH]) for i in starts]
    features = np.concatenate(parts)
  return features, list(panel.real.captions)


def table(result: dict[str, Any]) -> str:
  """The numbers with their intervals, and why some are left out."""
  lines = [f"{'':32}{'value':>12}  {'95 % interval':24}{'clips':>7}"]

  def line(name: str, value: Any, ends: list | None, count: Any = "") -> None:
    shown = "-" if value is None else f"{value:.4g}"
    low_high = "" if ends is None else " to ".join(map(_short, ends))
    lines.append(f"{name:32}{shown:>12}  {low_high:24}{count:>7}".rstrip())

  for name, row in result["rewards"].items():
    line(name, row["mean"], row["interval"], row["samples"])
  left_out = result.get("left_out", {})
  skipped = {"videos", "prompts", "rewards", "features", "left_out"}
  for name, value in result.items():
    if name in skipped or name.endswith(("_interval", "samples")):
      continue
    line(name, value, result.get(f"{name}_interval"), result["samples"])
    if name in left_out:
      lines[-1] = f"{name:32}{'-':>12}  {left_out[name]}"
  if "features" in result:
    real = result.get("reference_samples", "no")
    lines.append(f"({real} real clips; features: {result['features']})")
  return "\n".join(lines)


def _short(value: float | None) -> str:
  return "?" if value is None else f"{value:.4g}"
