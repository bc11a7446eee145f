"""What votes on pairs of clips say: win rates, chance, agreement."""

import collections
import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from scipy import stats

from dollar_jax.evaluation import intervals
from dollar_jax.evaluation.votes import QUESTIONS, Vote

OVERALL = "overall"
"""Of all questions together."""


def last_words(votes: Sequence[Vote]) -> tuple[list[Vote], int]:
  """Each rater's last vote on each question of each pair.

  Args:
    votes: of one study, in the order in which they were given.

  Returns:
    The votes that count, and how many were replaced by a later one.

  Raises:
    ValueError: if they compare different folders.
  """
  folders = {(str(vote.a.parent), str(vote.b.parent)) for vote in votes}
  if len(folders) > 1:
    one, other = sorted(folders)[:2]
    raise ValueError(
      f"the votes are of different studies: some compare {one[0]} with "
      f"{one[1]}, others {other[0]} with {other[1]}; give files of one"
    )
  kept = {(vote.rater, *_unit(vote)): vote for vote in votes}
  return list(kept.values()), len(votes) - len(kept)


def summarise(votes: Sequence[Vote]) -> dict[str, Any]:
  """What people said, as JSON can hold it.

  Args:
    votes: see `last_words`.

  Returns:
    "raters" and "pairs", their numbers; "questions", with a row (`tally`) for
    each that was asked and one for all together, and "agreement" in it;
    "prompts", with the win rate of b for each prompt and question.
  """
  asked = [name for name in QUESTIONS if any(v.question == name for v in votes)]
  rows = {name: [v for v in votes if v.question == name] for name in asked}
  rows[OVERALL] = list(votes)
  by_prompt = collections.defaultdict(dict)
  for name, some in rows.items():
    for prompt in sorted({vote.prompt for vote in some}):
      row = tally([vote for vote in some if vote.prompt == prompt])
      keys = "votes", "a", "b", "ties", "win_rate_b"
      by_prompt[prompt][name] = {key: row[key] for key in keys}
  return {
    "raters": len({vote.rater for vote in votes}),
    "pairs": len({(vote.prompt, vote.a, vote.b) for vote in votes}),
    "questions": {
      name: tally(some) | {"agreement": agreement(some)}
      for name, some in rows.items()
    },
    "prompts": dict(by_prompt),
  }


def tally(votes: Sequence[Vote]) -> dict[str, Any]:
  """Counts votes.

  Returns:
    "votes", "a", "b", "ties"; "win_rate_b", the share of b among those that
    preferred one, with "interval", Wilson's of 95 %, and "p_value", how likely
    a coin is as uneven (two-sided sign test); None where nobody preferred one.
    Votes count as independent, though several may be one rater's or on one
    pair.
  """
  counts = collections.Counter(vote.choice for vote in votes)
  decided = counts["a"] + counts["b"]
  rate = interval = p_value = None
  if decided:
    rate, *interval = intervals.wilson(counts["b"], decided)
    p_value = float(stats.binomtest(counts["b"], decided).pvalue)
  return {
    "votes": len(votes),
    "a": counts["a"],
    "b": counts["b"],
    "ties": counts["tie"],
    "win_rate_b": rate,
    "interval": interval,
    "p_value": p_value,
  }


def agreement(votes: Sequence[Vote]) -> dict[str, Any]:
  """How far raters say the same of the same.

  Returns:
    "answered_twice", the questions on pairs that two raters or more answered;
    "share", that of two raters on one of them who say the same; "alpha",
    Krippendorff's for nominal data, 1 where all agree and 0 where they do so as
    often as by chance. None where nothing is to be told.
  """
  answers = collections.defaultdict(list)
  for vote in votes:
    answers[_unit(vote)].append(vote.choice)
  share, alpha = krippendorff(list(answers.values()))
  twice = sum(len(choices) > 1 for choices in answers.values())
  return {"answered_twice": twice, "share": share, "alpha": alpha}


def krippendorff(
  units: Sequence[Sequence[Hashable]],
) -> tuple[float | None, float | None]:
  """Share of agreeing pairs of values within units, and alpha.

  Alpha is 1 less the observed disagreement over that expected by chance (K.
  Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, nominal
  data). A unit of m values weighs m.

  Args:
    units: the values that observers gave to each; those with one do not count.

  Returns:
    (share, alpha); None without a pair, and alpha None where all values are
    one.
  """
  agreeing, totals = 0.0, collections.Counter()
  for values in units:
    if len(values) > 1:
      counts = collections.Counter(values)
      totals += counts
      same = sum(n * (n - 1) for n in counts.values())
      agreeing += same / (len(values) - 1)
  count = sum(totals.values())
  if not count:
    return None, None
  share = agreeing / count
  chance = sum(n * (n - 1) for n in totals.values()) / (count * (count - 1))
  return share, None if chance == 1 else 1 - (1 - share) / (1 - chance)


def _unit(vote: Vote) -> tuple[Hashable, ...]:
  """What was asked of what."""
  fields = dataclasses.asdict(vote)
  return tuple(fields[name] for name in ("question", "prompt", "a", "b"))
