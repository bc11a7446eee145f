"""The folder of a set that is being prepared, from its plan to its info."""

import collections
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from tqdm import tqdm

from dollar_jax.data import shards
from dollar_jax.data.sources import Skipped
from dollar_jax.files import write_text
from dollar_jax.interop.folders import read_json
from dollar_jax.parallel import processes

PLAN = "prepare.json"
SKIPPED = "skipped.jsonl"
SOURCES = "sources.jsonl"

_OURS = (
  *("vae", "text_encoder", shards.NOTES, PLAN, SKIPPED, SOURCES),
  *("dataset_info.json", "features.json", "metadata.json"),
)


class Maker(Protocol):
  """What makes examples; see `ClipMaker` and `PromptMaker`."""

  def __len__(self) -> int: ...

  def examples(self, rows: range, notes: dict, done: Any) -> Any:
    """The examples of some rows."""


def check_out(out: Path) -> None:
  """Checks that a folder is new, or holds a set that is being prepared.

  Raises:
    ValueError: if it holds anything else.
  """
  if not out.exists():
    return
  if not out.is_dir():
    raise ValueError(f"{out} is a file; give a folder for the data set")
  for path in out.iterdir():
    mine = path.name in _OURS or path.name.startswith((".", f"{shards.NAME}-"))
    if not mine:
      raise ValueError(
        f"{out} holds {path.name}, which is no part of a data set; give a new "
        "or empty folder"
      )


def read_plan(out: Path) -> dict[str, Any] | None:
  """The plan that was begun in a folder, if one was."""
  return read_json(out / PLAN) if (out / PLAN).is_file() else None


def agree_on(out: Path, plan: dict[str, Any]) -> None:
  """Writes the plan of a set, or finds the same one there.

  Raises:
    ValueError: if another one was begun there.
  """
  processes.wait_for_all("look for a plan")
  begun = read_plan(out)
  if begun is not None:
    plan = json.loads(json.dumps(plan))
    for name in plan | begun:
      if begun.get(name) != plan.get(name):
        raise ValueError(
          f"{out} holds a set of other {name} ({_short(begun.get(name))}, "
          f"and now {_short(plan.get(name))}); ask for the same, or give "
          "another --out"
        )
  elif processes.is_first():
    write_text(out / PLAN, json.dumps(plan, indent=2) + "\n")
  processes.wait_for_all("plan")


def digest(lines: Sequence[Sequence[str]]) -> str:
  """One fingerprint for many texts in order."""
  return hashlib.sha256(json.dumps(list(lines)).encode()).hexdigest()[:16]


def write_shards(
  found: shards.Shards, maker: Maker, shard_size: int, unit: str
) -> None:
  """Makes the shards that are not there; each process its own."""
  dealt = shards.deal(len(maker), shard_size)
  mine = range(jax.process_index(), len(dealt), jax.process_count())
  absent = [index for index in mine if found.notes(index) is None]
  total = sum(len(dealt[index]) for index in mine)
  left = sum(len(dealt[index]) for index in absent)
  with tqdm(
    total=total,
    initial=total - left,
    desc="prepare",
    unit=unit,
    disable=None if processes.is_first() else True,  # None: if no terminal
  ) as bar:
    for index in absent:
      notes: dict[str, Any] = {}
      examples = maker.examples(dealt[index], notes, bar.update)
      found.write(index, examples, notes)
  processes.wait_for_all("shards")


def write_skipped(out: Path, rows: Sequence[dict[str, Any]]) -> None:
  """Writes what was skipped, a line each."""
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  write_text(out / SKIPPED, "".join(lines))


def check_share(
  out: Path, rows: Sequence[dict[str, Any]], count: int, limit: float
) -> None:
  """Checks that not too much was skipped.

  Args:
    out: the set's folder.
    rows: what was skipped, with a `reason` each; of whom `clips` were taken
      does not count.
    count: of all.
    limit: the share of them that may be skipped.

  Raises:
    ValueError: if it is more.
  """
  whole = [row["reason"] for row in rows if not row.get("clips")]
  if len(whole) > limit * count:
    [(reason, times)] = collections.Counter(whole).most_common(1)
    raise ValueError(
      f"{len(whole)} of {count} were skipped, more than the share "
      f"--max_skipped={limit:g} allows; most often ({times}): {reason}; see "
      f"{out / SKIPPED}"
    )


def as_rows(skipped: Sequence[Skipped]) -> list[dict[str, Any]]:
  """What stands in `SKIPPED`."""
  return [
    {"file_name": s.file_name, "reason": s.reason, "clips": s.clips}
    for s in skipped
  ]


def write_sources(
  out: Path, notes: Sequence[dict[str, Any]], hashes: dict[str, str]
) -> None:
  """Writes which files the clips are of, with their SHA-256 and shard."""
  lines = []
  for shard, note in enumerate(notes):
    for name, clips in note.get("clips", {}).items():
      row = {"file_name": name, "sha256": hashes[name], "clips": clips}
      row["shard"] = shard
      lines.append(json.dumps(row, ensure_ascii=False) + "\n")
  write_text(out / SOURCES, "".join(lines))


def psnr(notes: Sequence[dict[str, Any]]) -> float | None:
  """Peak signal-to-noise ratio in dB of all clips; None if unknown or 0."""
  error = sum(note.get("squared_error", 0.0) for note in notes)
  count = sum(note["examples"] for note in notes)
  return 10 * math.log10(255.0**2 * count / error) if error else None


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else text[:57] + "…"
