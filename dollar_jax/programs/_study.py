"""Has people compare clips, for `dollar study`."""

import collections
import itertools
from pathlib import Path
from typing import Any

from absl import flags

from dollar_jax.data.videos import list_videos
from dollar_jax.evaluation.study import last_words, summarise
from dollar_jax.evaluation.study_page import Pair, study_page
from dollar_jax.evaluation.votes import QUESTIONS, read_votes
from dollar_jax.files import write_text
from dollar_jax.interop.folders import write_json

PAGE = "index.html"


def main(values: flags.FlagValues) -> None:
  """Makes the page, or counts the votes.

  Raises:
    ValueError: for flags that do not go together, or files that cannot be used.
    OSError: if nothing can be written.
  """
  if values.votes and (values.a or values.b):
    raise ValueError(
      "--votes counts and --a with --b makes a page; give one or the other"
    )
  if values.votes:
    _count(values)
  elif values.a and values.b and values.out:
    _build(values)
  else:
    raise ValueError(
      "nothing to do; give --a=DIR --b=DIR --out=DIR for a page, or "
      "--votes=FILES to count"
    )


def _build(values: flags.FlagValues) -> None:
  for name in values.questions:
    if name not in QUESTIONS:
      raise ValueError(
        f"--questions has {name!r}; it takes {', '.join(QUESTIONS)}"
      )
  folders = tuple(Path(name).resolve() for name in (values.a, values.b))
  pairs, alone = _matched(*folders)
  if not pairs:
    raise ValueError(
      f"no prompt has clips both in {folders[0]} and in {folders[1]}; sample "
      "both from one list of prompts"
    )
  pairs = _some(pairs, values.pairs)
  content = [
    Pair(prompt, a.name, b.name, (a.read_bytes(), b.read_bytes()))
    for prompt, a, b in pairs
  ]
  names = str(folders[0]), str(folders[1])
  questions = list(dict.fromkeys(values.questions))
  page = study_page(content, names, questions, values.seed)
  file = Path(values.out) / PAGE
  write_text(file, page)
  left_out = f"; {alone} clips have no counterpart" if alone else ""
  print(
    f"{file} asks {len(pairs) * len(questions)} questions on "
    f"{len(pairs)} pairs{left_out}"
  )


def _matched(a: Path, b: Path) -> tuple[list[tuple[str, Path, Path]], int]:
  """Pairs of clips, by prompt and by order within it; how many are alone."""
  by_prompt = []
  for folder in (a, b):
    found = collections.defaultdict(list)
    for file, prompt in list_videos(folder):
      found[prompt].append(file)
    by_prompt.append(found)
  one, other = by_prompt
  pairs = [
    (prompt, *files)
    for prompt in one
    if prompt in other
    for files in zip(one[prompt], other[prompt], strict=False)
  ]
  total = sum(len(files) for found in by_prompt for files in found.values())
  return pairs, total - 2 * len(pairs)


def _some(pairs: list[tuple[str, Path, Path]], count: int) -> list[tuple]:
  """`count` of the pairs, one of every prompt before two of any."""
  if not count or count >= len(pairs):
    return pairs
  rows = collections.defaultdict(list)
  for pair in pairs:
    rows[pair[0]].append(pair)
  rounds = itertools.zip_longest(*rows.values())
  flat = [pair for turn in rounds for pair in turn if pair is not None]
  return flat[:count]


def _count(values: flags.FlagValues) -> None:
  votes, replaced = last_words(read_votes(values.votes))
  result = summarise(votes) | {
    "a": str(votes[0].a.parent),
    "b": str(votes[0].b.parent),
    "replaced": replaced,
  }
  if values.out:
    write_json(Path(values.out), result)
  print(f"a: {result['a']}\nb: {result['b']}")
  print(
    f"{result['raters']} raters, {result['pairs']} pairs, {len(votes)} votes"
    + (f", {replaced} replaced by later ones" if replaced else "")
  )
  print(
    f"{'':10}{'a':>6}{'b':>6}{'ties':>6}  {'b wins, of those decided':28}"
    f"{'p':>7}  {'raters agree':>12}{'alpha':>7}"
  )
  for name, row in result["questions"].items():
    print(_row(name, row))


def _row(name: str, row: dict[str, Any]) -> str:
  won = chance = "-"
  if row["win_rate_b"] is not None:
    low, high = row["interval"]
    won = f"{row['win_rate_b']:.1%} [{low:.1%}, {high:.1%}]"
    chance = f"{row['p_value']:.3f}"
  share, alpha = row["agreement"]["share"], row["agreement"]["alpha"]
  agree = "-" if share is None else f"{share:.1%}"
  alike = "-" if alpha is None else f"{alpha:.2f}"
  return (
    f"{name:10}{row['a']:6}{row['b']:6}{row['ties']:6}  {won:28}{chance:>7}  "
    f"{agree:>12}{alike:>7}"
  )
