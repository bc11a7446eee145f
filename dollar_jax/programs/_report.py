"""One page of runs, clips and scores, for `dollar report`."""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax import __version__
from dollar_jax.data.videos import list_videos, read_video
from dollar_jax.evaluation import plots
from dollar_jax.evaluation.report import (
  Block,
  ClipGrid,
  Code,
  Figure,
  Folded,
  Section,
  Table,
  Text,
  render,
)
from dollar_jax.evaluation.side_by_side import in_step, shrunk
from dollar_jax.files import read_text, write_text
from dollar_jax.interop.folders import read_json
from dollar_jax.parallel.machine import MACHINE
from dollar_jax.train import metrics as metrics_log
from dollar_jax.train.loop import CONFIG

MOST_BYTES = 20 * 10**6
"""What a page may weigh."""

_SMALLEST = 64
_ABREAST = 4  # large clips that fit beside each other; of small ones, twice
_SPEED = {
  "name": "clips",
  "steps": "steps",
  "guidance": "guidance",
  "network_evaluations": "network evaluations",
  "seconds_per_video": "seconds a video",
  "speedup": "times as fast as the first",
  "batch_size": "batch",
  "memory": "peak memory, GB",
  "machine": "on",
}
_STAGES = {
  "name": "clips",
  "text": "text",
  "denoising": "denoising",
  "decoding": "decoding",
  "writing": "writing",
  "wall_seconds_per_video": "by the clock",
  "overlap": "share saved",
  "compile_seconds": "compilation, in all",
}
_RUNS = {
  "name": "run",
  "task": "task",
  "steps": "steps",
  "seconds_per_step": "seconds a step",
  "memory": "peak memory, GB",
  "machine": "on",
}

Named = dict[str, Path]
"""What a flag lists, by the names that the page shows."""


def main(values: flags.FlagValues) -> None:
  """Writes the page.

  Raises:
    ValueError: if there is nothing to show, what is named cannot be read, or
      the page would be too large.
  """
  runs, clips, scores = (
    _named(flag, getattr(values, flag)) for flag in ("runs", "clips", "scores")
  )
  if not (runs or clips or scores):
    raise ValueError(
      "there is nothing to show; give --runs, --clips or --scores"
    )
  sections = _score_sections(scores) + _speed_sections(clips)
  sections += _run_sections(runs)
  out, side = Path(values.out), values.max_side
  shown = _read_clips(clips, values.prompts, side) if clips else {}
  while True:
    first = [_clip_section(shown, list(clips), side)] if shown else []
    page = render(
      values.title, first + sections, footer=f"dollar_jax {__version__}"
    )
    size = len(page.encode())
    if size <= MOST_BYTES:
      break
    if not shown or side // 2 < _SMALLEST:
      raise ValueError(
        f"the page would have {size / 1e6:.0f} MB, more than "
        f"{MOST_BYTES / 1e6:.0f}; lower --prompts or give fewer folders"
      )
    side //= 2
  write_text(out, page)
  print(f"{out}: {size / 1e6:.1f} MB")


def _named(flag: str, entries: list[str]) -> Named:
  """Paths by name; one that is not given is the path's last part.

  Raises:
    ValueError: if a name stands there twice.
  """
  named: Named = {}
  for entry in entries:
    name, given, path = entry.rpartition("=")
    # a folder may have "=" in its name
    place = Path(path if given and not Path(entry).exists() else entry)
    if place == Path(entry):
      name = place.stem if place.suffix == ".json" else place.resolve().name
    if name in named:
      raise ValueError(
        f"--{flag} has {name!r} twice; tell them apart with NAME={place}"
      )
    named[name] = place
  return named


def _read_clips(
  folders: Named, most: int, side: int
) -> dict[str, list[tuple[np.ndarray, float]]]:
  """By prompt the first clip of each folder, of prompts that all have.

  They are shrunk one by one, since many large ones do not fit into memory.

  Raises:
    ValueError: if no prompt is in all folders.
  """
  files = []
  for folder in folders.values():
    found: dict[str, Path] = {}
    for file, prompt in list_videos(folder):
      found.setdefault(prompt, file)
    files.append(found)
  prompts = [p for p in files[0] if all(p in found for found in files)]
  if not prompts:
    raise ValueError(
      f"no prompt has clips in all of {', '.join(map(str, folders.values()))}; "
      "sample them from one list of prompts"
    )
  bar = tqdm(prompts[:most], "read", unit="prompt", disable=None)
  clips: dict[str, list[tuple[np.ndarray, float]]] = {}
  for prompt in bar:
    read = [read_video(found[prompt]) for found in files]
    clips[prompt] = [(shrunk(frames, side), fps) for frames, fps in read]
  return clips


def _clip_section(
  shown: Mapping[str, list[tuple[np.ndarray, float]]],
  names: list[str],
  side: int,
) -> Section:
  prompts = list(shown)
  # all in step with each other, not only prompt by prompt
  flat, fps = in_step([clip for p in prompts for clip in shown[p]], side)
  clips = flat.reshape(len(prompts), len(names), *flat.shape[1:]).swapaxes(0, 1)
  abreast = _ABREAST if max(flat.shape[2:4]) > _SMALLEST else 2 * _ABREAST
  blocks = [
    ClipGrid(clips[:, i : i + abreast], names, prompts[i : i + abreast], fps)
    for i in range(0, len(prompts), abreast)
  ]
  return Section("Side by side", blocks)


def _score_sections(files: Named) -> list[Section]:
  rows, notes = [], collections.defaultdict(list)
  for name, file in files.items():
    try:
      content = json.loads(read_text(file))
    except (ValueError, RecursionError):
      content = None
    if not isinstance(content, dict):
      raise ValueError(
        f"{file} holds no scores; give a JSON file of `dollar evaluate`"
      )
    rows.append({"name": name, **_score_row(content)})
    if "features" in content:
      notes[f"features {content['features']}"].append(name)
    for what, why in content.get("left_out", {}).items():
      notes[f"no {what}, as {why}"].append(name)
  if not rows:
    return []
  rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
  told = [
    f"{text} ({', '.join(names)})" if len(names) < len(rows) else text
    for text, names in notes.items()
  ]
  note = f"Brackets: 95 % intervals. {'; '.join(told)}"
  return [Section("Scores", [Table(rows, note=note)])]


def _score_row(content: Mapping[str, Any]) -> dict[str, Any]:
  """The numbers of one file, rewards among them, with their intervals."""
  row = {
    key: value
    for key, value in content.items()
    if isinstance(value, int | float | None) or key.endswith("_interval")
  }
  rewards = content.get("rewards", {})
  for name, found in rewards.items() if isinstance(rewards, dict) else ():
    row[name] = found.get("mean")
    row[f"{name}_interval"] = found.get("interval")
  return row


def _speed_sections(folders: Named) -> list[Section]:
  rows = []
  for name, folder in folders.items():
    if (file := folder / MACHINE).is_file():
      rows.append({"name": name, **read_json(file)})
  if not rows:
    return []
  for row in rows:
    row |= _machine(row)
    first, own = rows[0].get("seconds_per_video"), row.get("seconds_per_video")
    row["speedup"] = first / own if first and own else None
  note = "Noise to pixels, without the first batch, which compiles."
  tables: list[Block] = [Table(rows, _SPEED, note)]
  stages = "stage_seconds_per_video"
  if staged := [row | row[stages] for row in rows if stages in row]:
    note = "Seconds a video by stage, from prompt to file; stages overlap."
    tables.append(Table(staged, _STAGES, note))
  return [Section("Sampling", tables)]


def _machine(found: Mapping[str, Any]) -> dict[str, Any]:
  memory = found.get("peak_memory_bytes")
  return {
    "memory": memory / 1e9 if memory else None,
    "machine": f"{found.get('devices', '?')} x {found.get('device', '?')}",
  }


def _run_sections(folders: Named) -> list[Section]:
  rows, logs, configs, versions = [], {}, {}, {}
  for name, folder in folders.items():
    if not (folder / CONFIG).is_file():
      raise ValueError(
        f"{folder} is no training run, as it holds no {CONFIG}; give the "
        "--workdir of `dollar train`"
      )
    configs[name] = _flat(read_json(folder / CONFIG))
    logs[name] = metrics_log.read(str(folder))
    row = {"name": name, "task": configs[name].get("task")}
    row["steps"] = int(logs[name][-1]["step"]) if logs[name] else 0
    if (folder / MACHINE).is_file():
      machine = read_json(folder / MACHINE)
      row |= machine | _machine(machine)
      versions[name] = ", ".join(
        f"{key} {machine.get(key)}" for key in ("python", "jax", "dollar_jax")
      )
    rows.append(row)
  if not rows:
    return []
  keys = {
    key: metrics_log.TITLES.get(key, key)
    for key in dict.fromkeys(k for log in logs.values() for r in log for k in r)
    if key != "step"
    and not key.startswith("guard_limit/")
    and not key.endswith(("skipped_in_row", "failures", "retries"))
  }
  training: list[Block] = [Table(rows, _RUNS)]
  if keys:
    training.append(Figure(plots.curves_of_runs(logs, keys), "Curves"))
  else:
    training.append(Text("No metrics were logged."))
  settings: list[Block] = []
  if differing := _differing(configs):
    settings.append(Table(differing, note="Entries in which the runs differ."))
  for name, config in configs.items():
    lines = [f"{key} = {value!r}" for key, value in config.items()]
    settings.append(Folded(f"config of {name}", Code("\n".join(lines))))
  if versions:
    text = "\n".join(f"{name}: {text}" for name, text in versions.items())
    settings.append(Code(text))
  return [Section("Training", training), Section("Settings", settings)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The entries of a nested config, by dotted name."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _differing(configs: Mapping[str, dict[str, Any]]) -> list[dict[str, str]]:
  """A row for each entry that is not the same in all runs."""
  keys = dict.fromkeys(key for config in configs.values() for key in config)
  rows = []
  for key in keys:
    values = {name: repr(c.get(key)) for name, c in configs.items()}
    if len(set(values.values())) > 1:
      rows.append({"entry": key, **values})
  return rows
