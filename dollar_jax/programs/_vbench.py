"""Scores VBench's dimensions, for `dollar vbench`."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dollar_jax.evaluation.vbench import RANGES, plain_name, scores
from dollar_jax.evaluation.vbench_published import DIMENSIONS, RESULTS
from dollar_jax.files import read_text
from dollar_jax.interop.folders import write_json

PATTERN = "*eval_results.json"
"""Names of the files that the package writes."""


def main(values: flags.FlagValues) -> None:
  """Reads the dimensions, prints and writes the scores.

  Raises:
    ValueError: if a file is no such result, or dimensions are missing.
  """
  results = read_results([Path(name) for name in values.results])
  found = scores(results)
  if values.out:
    write_json(Path(values.out), found | {"dimensions": results})
  print(table(results, found))


def read_results(paths: Sequence[Path]) -> dict[str, float]:
  """Dimension → value, of all files together.

  Raises:
    ValueError: if a file cannot be read, or a dimension stands in two of them.
  """
  files: list[Path] = []
  for path in paths:
    inside = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
    if not inside:
      raise ValueError(f"{path} holds no {PATTERN}; give the files themselves")
    files += inside
  results: dict[str, float] = {}
  origin: dict[str, Path] = {}
  for file in files:
    for name, value in _read(file).items():
      plain = plain_name(name)
      if plain in origin:
        raise ValueError(
          f"{plain} stands in {origin[plain]} and in {file}; give the results "
          "of one model"
        )
      origin[plain], results[plain] = file, value
  return results


def _read(file: Path) -> dict[str, float]:
  text = read_text(file)
  if file.suffix == ".csv":
    rows = [row for row in csv.reader(text.splitlines()) if row]
    # a first line may name the columns
    if rows and len(rows[0]) == 2 and _number(rows[0][1]) is None:
      rows = rows[1:]
    pairs = [tuple(row) if len(row) == 2 else (str(row), None) for row in rows]
  else:
    try:
      content = json.loads(text)
    except (ValueError, RecursionError):
      content = None
    if not isinstance(content, dict):
      raise ValueError(
        f"{file} is no JSON object; give VBench's *_eval_results.json, or "
        '{"subject consistency": 93.8, ...}'
      )
    pairs = list(content.items())
  found = {}
  for name, value in pairs:
    # the package writes [score, [a row for each video]]
    number = _number(value[0] if isinstance(value, list) and value else value)
    if number is None:
      raise ValueError(
        f"{name} in {file} is {str(value)[:40]!r}; it must be a number, or a "
        "list that begins with one"
      )
    found[name] = number
  return found


def _number(value: Any) -> float | None:
  try:
    return None if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    return None


def table(results: dict[str, float], found: dict[str, float]) -> str:
  """Both tables, all in per cent."""
  unit = 1 if max(results.values()) > 1 else 100
  lines = [f"{'%':24}{'this':>8}{'teacher':>9}{'student':>9}{'change':>8}"]
  for name in RANGES:
    mine, (teacher, student) = unit * results[name], DIMENSIONS[name]
    lines.append(
      f"{name:24}{mine:8.2f}{teacher:9.2f}{student:9.2f}{mine - teacher:+8.2f}"
    )
  lines += [
    "(the paper's teacher of 50 steps; its student, of 4, tuned to PickScore)",
    "",
    f"{'%':34}{'quality':>8}{'semantic':>9}{'total':>8}  source",
  ]
  mine = found["quality"], found["semantic"], found["total"]
  rows = [("this", *mine, ""), *RESULTS]
  for model, quality, semantic, total, source in rows:
    cells = [
      "-" if value is None else f"{value:.2f}"
      for value in (quality, semantic, total)
    ]
    lines.append(
      f"{model:34}{cells[0]:>8}{cells[1]:>9}{cells[2]:>8}  {source}".rstrip()
    )
  return "\n".join(lines)
