"""Captioned files to prepare: what is listed, what of it can be taken.

A folder with Hugging Face's `metadata.jsonl` or `metadata.csv`, or a .csv
file; rows have `file_name`, relative to where the list lies, and `text`.
"""

import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

LISTS = ("metadata.jsonl", "metadata.csv")
"""Names of a folder's list, in the order of preference."""

ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Files that are told of when no caption is known of them."""

LONGEST_CAPTION = 10_000
"""Characters, above which a caption is taken for a mistake."""

_NEEDED = ("file_name", "text")
_FAULT = "!"  # begins a reason where a fingerprint is expected


@dataclasses.dataclass(frozen=True)
class Source:
  """One file that a list names.

  Attributes:
    file_name: as the list has it.
    text: its caption.
    path: where it is.
  """

  file_name: str
  text: str
  path: Path


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A source of which something was not taken.

  Attributes:
    file_name: as the list has it.
    reason: why.
    clips: how many clips of it were taken nonetheless.
  """

  file_name: str
  reason: str
  clips: int = 0


def read_sources(videos: str | os.PathLike) -> list[Source]:
  """What a list names, in its order.

  Args:
    videos: a folder that holds a list, or a .csv file.

  Raises:
    ValueError: if there is no list, it names nothing, or a row is not
      understood.
  """
  path = Path(videos)
  if path.is_file():
    file = path
  else:
    files = [path / name for name in LISTS if (path / name).is_file()]
    if not files:
      raise ValueError(
        f"{path} holds neither metadata.jsonl nor metadata.csv; list its "
        'videos, a line each: {"file_name": "a.mp4", "text": "its caption"}'
      )
    file = files[0]
  read = _read_csv if file.suffix == ".csv" else read_metadata
  rows = read(file)
  if not rows:
    raise ValueError(f"{file} lists no video; add a line for each")
  return [Source(name, text, file.parent / name) for name, text in rows]


def unlisted(videos: str | os.PathLike, sources: Sequence[Source]) -> list[str]:
  """Names of the videos in a folder that its list does not have, sorted."""
  folder = Path(videos)
  if not folder.is_dir():
    return []
  listed = {os.path.normpath(source.path) for source in sources}
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("[!.]*")
    if path.suffix.lower() in ENDINGS and os.path.normpath(path) not in listed
  )


def fingerprint(source: Source) -> str:
  """SHA-256 of the file, or, of one that cannot be used, "!" and the reason."""
  if not source.text.strip():
    return f"{_FAULT}its caption is empty"
  if len(source.text) > LONGEST_CAPTION:
    return (
      f"{_FAULT}its caption has {len(source.text):,} characters, more than "
      f"{LONGEST_CAPTION:,}"
    )
  try:
    if not source.path.is_file():
      return f"{_FAULT}there is no such file"
    if not source.path.stat().st_size:
      return f"{_FAULT}the file is empty"
    with source.path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    return f"{_FAULT}it cannot be read ({error.strerror})"


def sift(
  sources: Sequence[Source], fingerprints: Sequence[str]
) -> tuple[list[tuple[Source, str]], list[Skipped]]:
  """Tells the files to decode from those that are known to be of no use.

  Args:
    sources: in order; of files with the same content the first is kept.
    fingerprints: of each, see `fingerprint`.

  Returns:
    (sources with their SHA-256, the others with the reason).
  """
  kept, skipped, first = [], [], {}
  for source, found in zip(sources, fingerprints, strict=True):
    if found.startswith(_FAULT):
      skipped.append(Skipped(source.file_name, found.removeprefix(_FAULT)))
    elif found in first:
      reason = f"it has the same content as {first[found]}"
      skipped.append(Skipped(source.file_name, reason))
    else:
      first[found] = source.file_name
      kept.append((source, found))
  return kept, skipped


def read_metadata(file: Path) -> list[tuple[str, str]]:
  """File names and captions of a metadata.jsonl.

  Raises:
    ValueError: if a line is not understood.
  """
  rows = []
  for number, line in enumerate(_text(file).split("\n"), 1):
    if not line.strip():
      continue
    try:
      values = json.loads(line)
      row = tuple(values[name] for name in _NEEDED)
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
      row = ()
    if not row or not all(isinstance(value, str) for value in row):
      raise ValueError(
        f"line {number} of {file} is not understood; write each line as "
        '{"file_name": "a.mp4", "text": "its caption"}'
      )
    rows.append(row)
  return rows


def _text(file: Path) -> str:
  try:
    return file.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError:
    raise ValueError(f"{file} is no UTF-8 text; convert it") from None


def _read_csv(file: Path) -> list[tuple[str, str]]:
  reader = csv.DictReader(_text(file).splitlines(keepends=True))
  absent = [n for n in _NEEDED if n not in (reader.fieldnames or ())]
  if absent:
    raise ValueError(
      f"{file} has no column {absent[0]!r}; its first line must name the "
      "columns file_name and text"
    )
  rows = []
  for row in reader:
    values = tuple(row[name] for name in _NEEDED)
    if None in values:
      raise ValueError(
        f"line {reader.line_num} of {file} has fewer columns than its first; "
        "put texts with commas in quotation marks"
      )
    rows.append(values)
  return rows


def read_prompts(file: str | os.PathLike) -> list[str]:
  """The prompts of a file, one a line; empty lines do not count.

  Raises:
    ValueError: if there is no such file, or no prompt in it.
  """
  try:
    lines = _text(Path(file)).splitlines()
  except OSError:
    raise ValueError(
      f"{file} cannot be read; give a file with one prompt a line"
    ) from None
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ValueError(f"{file} holds no prompt; write one a line")
  return prompts
