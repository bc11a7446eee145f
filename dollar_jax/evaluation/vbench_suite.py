"""Which clips VBench wants: its prompts, and how many of each.

`vbench/VBench_full_info.json` of its repository (github.com/Vchitect/VBench)
holds a list of {"prompt_en": TEXT, "dimension": [NAME, ...], ...}; a file of
`prompts/prompts_per_dimension` holds a prompt a line.
"""

import json
import os
from pathlib import Path

from dollar_jax.files import read_text

SAMPLES = 5
"""Clips a prompt."""

FLICKERING_SAMPLES = 25
"""Clips of a prompt for temporal flickering, of which only those that stand
still are judged (prompts/README.md there)."""

_FLICKERING = "temporal_flickering"


def read_suite(path: str | os.PathLike) -> dict[str, int]:
  """Prompts, each once, and the number of clips that VBench wants of it.

  Args:
    path: JSON or text as described above; a text that is named after temporal
      flickering is taken to be that dimension's.

  Raises:
    ValueError: if it cannot be read, is neither, or holds no prompt.
  """
  path = Path(path)
  text = read_text(path)
  if path.suffix == ".json":
    entries = _entries(path, text)
  else:
    entries = [(line.strip(), [path.stem]) for line in text.splitlines()]
  counts: dict[str, int] = {}
  for prompt, dimensions in entries:
    if not prompt:
      continue
    wanted = FLICKERING_SAMPLES if _FLICKERING in dimensions else SAMPLES
    counts[prompt] = max(wanted, counts.get(prompt, 0))
  if not counts:
    raise ValueError(f"suite {path} holds no prompt; give VBench's own")
  return counts


def _entries(path: Path, text: str) -> list[tuple[str, list[str]]]:
  try:
    rows = json.loads(text)
    pairs = [(row["prompt_en"], row["dimension"]) for row in rows]
  except (ValueError, TypeError, KeyError, RecursionError):
    pairs = [(None, None)]
  for prompt, dimensions in pairs:
    if not isinstance(prompt, str) or not isinstance(dimensions, list):
      raise ValueError(
        f"suite {path} is no list of objects with prompt_en and dimension; "
        "give VBench_full_info.json, or a .txt file with a prompt a line"
      )
  return [(prompt.strip(), dimensions) for prompt, dimensions in pairs]
