"""What a guard sees in all clips together: how real and diverse they are."""

import numpy as np

from dollar_jax.evaluation.diversity import diversity
from dollar_jax.evaluation.frechet import frechet_interval
from dollar_jax.evaluation.intervals import Estimate
from dollar_jax.rewards.features import FeatureFn
from dollar_jax.rewards.mixture import Mixture
from dollar_jax.rewards.scoring import ONCE, Failures, Patience

SETS = ("frechet", "diversity")
"""Less is better of the first, more of the second."""


class WithFeatures:
  """Rewards whose values are followed by features of the clips.

  It stands where a `Mixture` does, which labels what is decoded.

  Attributes:
    name: of the rewards.
  """

  def __init__(self, features: FeatureFn, mixture: Mixture | None = None):
    """Takes the features, and rewards unless they stand alone."""
    self.name = mixture.name if mixture else "features"
    self._mixture, self._features = mixture, features

  def score(
    self,
    frames: np.ndarray,
    prompts: list[str],
    patience: Patience = ONCE,
  ) -> tuple[np.ndarray, Failures]:
    """Values and features, float32 [B, M + D]; see `Mixture.score`."""
    features = self._features(frames)
    if self._mixture is None:
      return features, Failures(0, len(features))
    values, failures = self._mixture.score(frames, prompts, patience)
    return np.concatenate([values, features], axis=1), failures


def measure(
  features: np.ndarray, prompts: list[str], real: np.ndarray
) -> dict[str, Estimate]:
  """Fréchet distance and, where a prompt comes twice, diversity.

  Args:
    features: [N, D] of the clips.
    prompts: N prompts.
    real: [R, D], features of clips of the data set.
  """
  found = {SETS[0]: frechet_interval(features, real)}
  if len(set(prompts)) < len(prompts):
    found[SETS[1]] = diversity(features, prompts)
  return found


def fall(name: str, before: float, now: Estimate) -> float:
  """By what share a number is worse than it was; 0 where that may be chance."""
  low, high = now.low, now.high
  clear = low > before if name == SETS[0] else high < before
  if not clear or before <= 0:
    return 0.0
  return abs(now.value / before - 1)
