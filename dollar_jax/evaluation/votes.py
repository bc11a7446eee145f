"""Votes of people on pairs of clips, as files of JSON.

One file is what one person said in one sitting:

    {"rater": "anna", "a": "runs/one", "b": "runs/two", "votes": [
      {"question": "motion", "prompt": "a cat", "a": "a cat-0.mp4",
       "b": "a cat-0.mp4", "choice": "b"}]}

`a` and `b` are two folders and, in a vote, a clip in each. Who voted did not
see which was which.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

QUESTIONS = ("quality", "motion", "text")
"""What is asked of a pair: which looks better, which moves better, which shows
what the prompt says."""

CHOICES = ("a", "b", "tie")

VOTES = "votes"
"""Name of the reward that people have voted for; it scores no new clip."""

LARGEST = 64 * 2**20
"""Bytes of a file that is read; a vote has about 200."""


@dataclasses.dataclass(frozen=True)
class Vote:
  """What somebody answered.

  Attributes:
    rater: who, by any name.
    question: one of `QUESTIONS`.
    prompt: of both clips.
    a: one clip's file.
    b: the other's.
    choice: the better one, "a" or "b"; "tie": neither.
  """

  rater: str
  question: str
  prompt: str
  a: Path
  b: Path
  choice: str


def read_votes(files: Iterable[str | os.PathLike]) -> list[Vote]:
  """Reads files of votes, in their order.

  Args:
    files: one or more. Folders in them are taken from where the program runs,
      unless they are whole paths.

  Raises:
    ValueError: if a file is missing, not such a file, or given twice; if
      there is none.
  """
  votes, seen = [], set()
  for file in map(Path, files):
    text = _read(file)
    if text in seen:
      raise ValueError(f"{file} comes twice among the votes; give it once")
    seen.add(text)
    votes += _understand(file, text)
  if not votes:
    raise ValueError("the files hold no vote; collect some with `dollar study`")
  return votes


def _read(file: Path) -> str:
  try:
    if file.stat().st_size > LARGEST:
      raise ValueError(
        f"{file} has more than {LARGEST // 2**20} MiB, so it is no file of "
        "votes; give one that `dollar study` made"
      )
    return file.read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "it is not text"
    raise ValueError(
      f"votes cannot be read from {file} ({reason}); give a .json file that "
      "the page of `dollar study` saved"
    ) from None


def _understand(file: Path, text: str) -> list[Vote]:
  try:
    content = json.loads(text)
    rater, folders = content["rater"], [Path(content[k]) for k in ("a", "b")]
    rows = list(content["votes"])
  except (KeyError, TypeError, ValueError, RecursionError):
    raise ValueError(
      f"{file} is no file of votes; give a .json file that the page of "
      "`dollar study` saved"
    ) from None
  return [
    _vote(row, str(rater), folders, f"vote {number} of {file}")
    for number, row in enumerate(rows, 1)
  ]


def _vote(row: Any, rater: str, folders: list[Path], where: str) -> Vote:
  fields = ("question", "prompt", "a", "b", "choice")
  good = isinstance(row, dict) and all(
    isinstance(row.get(field), str) for field in fields
  )
  if not good:
    raise ValueError(
      f"{where} is {str(row)[:80]}; it must have {', '.join(fields)}, all text"
    )
  for field, allowed in (("question", QUESTIONS), ("choice", CHOICES)):
    if row[field] not in allowed:
      raise ValueError(
        f"{field} in {where} is {row[field]!r}; it must be one of "
        f"{', '.join(allowed)}"
      )
  for field in ("a", "b"):
    if Path(row[field]).name != row[field]:
      raise ValueError(
        f"{field} in {where} is {row[field]!r}; it must be a file's name"
      )
  a, b = (
    folder / row[field]
    for folder, field in zip(folders, ("a", "b"), strict=True)
  )
  return Vote(rater, row["question"], row["prompt"], a, b, row["choice"])
