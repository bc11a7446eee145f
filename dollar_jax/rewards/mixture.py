"""Weighted sums of rewards, written "pickscore + 0.5*sharpness"."""

import dataclasses
import math
import re

import numpy as np

from dollar_jax.evaluation.votes import VOTES
from dollar_jax.rewards.base import Reward, get_reward
from dollar_jax.rewards.scoring import ONCE, Failures, Patience, score

_TERM = re.compile(r"(?:(?P<weight>[^*\s]+)\s*\*\s*)?(?P<name>[^*\s]+)")


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Rewards with weights; each counts in its own standard deviations.

  Attributes:
    name: as it was asked for.
    rewards: M rewards.
    weights: M weights, none of them 0; below 0 less is better.
  """

  name: str
  rewards: tuple[Reward, ...]
  weights: tuple[float, ...]

  @property
  def names(self) -> list[str]:
    """The names of the rewards."""
    return [reward.name for reward in self.rewards]

  @property
  def kind(self) -> str:
    """What `Reward` calls so: "image" if all of them score frame by frame."""
    kinds = {reward.kind for reward in self.rewards}
    return "image" if kinds == {"image"} else "video"

  @property
  def uses_text(self) -> bool:
    """Whether any of them reads the prompts."""
    return any(reward.uses_text for reward in self.rewards)

  def score(
    self,
    frames: np.ndarray,
    prompts: list[str],
    patience: Patience = ONCE,
  ) -> tuple[np.ndarray, Failures]:
    """Scores clips with each of the rewards; see `scoring.score`.

    Returns:
      float32 [B, M], NaN where there is no value, and what failed: a sample
      without all its values counts as one without any.
    """
    columns, reasons, retries = [], [], 0
    for reward in self.rewards:
      values, failures = score(reward, frames, prompts, patience)
      columns.append(values)
      retries += failures.retries
      if failures.reason is not None:
        whose = f"{reward.name}: " if len(self.rewards) > 1 else ""
        reasons.append(whose + failures.reason)
    values = np.stack(columns, axis=1)
    missing = int(np.isnan(values).any(axis=1).sum())
    reason = "; ".join(reasons) if reasons else None
    return values, Failures(missing, len(values), reason, retries)


def get_mixture(text: str) -> Mixture:
  """Reads a sum of rewards.

  Args:
    text: one reward's name, or several with weights:
      "pickscore + 0.5*sharpness - 2*MODULE:FUNCTION". Blanks stand around the
      signs that join them. `VOTES` is a sum of nothing.

  Raises:
    ValueError: if it cannot be read, a weight is 0 or not finite, or there is
      no such reward.
  """
  if text == VOTES:
    return Mixture(text, (), ())
  sum_ = text.strip()
  first, rest = ("-", sum_[1:]) if sum_.startswith("-") else ("+", sum_)
  _, *parts = re.split(r"(?:^|\s+)([+-])\s+", f"{first} {rest}")
  terms = [
    _term(sign, term, text)
    for sign, term in zip(parts[::2], parts[1::2], strict=True)
  ]
  rewards, weights = zip(*terms, strict=True)
  names = [reward.name for reward in rewards]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f"reward {twice[0]!r} comes twice in {text!r}; give it one weight"
    )
  return Mixture(text, rewards, weights)


def _term(sign: str, term: str, text: str) -> tuple[Reward, float]:
  match = _TERM.fullmatch(term)
  if match is None:
    raise ValueError(
      f"{term!r} in the reward {text!r} cannot be read; write NAME or "
      "WEIGHT*NAME, joined by ' + ' or ' - '"
    )
  try:
    weight = float(match["weight"] or 1)
  except ValueError:
    weight = math.nan
  if not 0 < weight < math.inf:
    raise ValueError(
      f"weight {match['weight']!r} in the reward {text!r} is not a number "
      "above 0; write it like 0.5, with ' - ' before it if less is better"
    )
  return get_reward(match["name"]), weight if sign == "+" else -weight
