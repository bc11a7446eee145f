"""What a run that climbs a reward can be told: the reward, and its guard."""

import dataclasses
import math
from typing import Any

from dollar_jax.evaluation.votes import QUESTIONS, VOTES

LABELLING = ("auto", "inline", "background")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The metric, its labelling, and how the latent reward model learns it.

  Attributes:
    name: a registered reward, "MODULE:FUNCTION", or a sum of several such as
      "pickscore + 0.5*sharpness", each in its own standard deviations; or
      "votes", to climb what people preferred.
    votes: for "votes", the files that `dollar study` made.
    question: which of its questions counts; empty: all of them.
    held_out: share of the pairs that were voted on to judge the model by.
    running: whether mean and deviation of the rewards follow the student's
      samples; if not, they stay what they were before its first update.
    timeout: seconds after which a call of a reward is given up; 0 never.
    retries: further calls after one that gave nothing.
    every: student updates between refreshes of the latent reward model.
    real_labels: real samples labelled before the student's, to fit the latent
      reward model to them first.
    real_steps: updates of the latent reward model on those.
    warmup_labels: samples labelled before the first student update.
    warmup_steps: updates of the latent reward model on those.
    labels: samples labelled at every refresh.
    steps: its updates at every refresh.
    batch_size: labelled samples in one of its updates.
    capacity: labelled samples kept for replay.
    labelling: "background" labels on threads while the accelerator trains,
      "inline" at once, so that a run can be repeated bit by bit; "auto" is
      inline on CPUs.
    workers: those threads.
    max_age: updates after which a label in the background is waited for.
    max_failures: failed calls of the reward in a row that stop the run.
  """

  name: str = "jpeg_compressibility"
  votes: tuple[str, ...] = ()
  question: str = ""
  held_out: float = 0.2
  running: bool = False
  timeout: float = 0.0
  retries: int = 0
  every: int = 10
  real_labels: int = 0
  real_steps: int = 0
  warmup_labels: int = 512
  warmup_steps: int = 200
  labels: int = 128
  steps: int = 20
  batch_size: int = 64
  capacity: int = 1024
  labelling: str = "auto"
  workers: int = 1
  max_age: int = 50
  max_failures: int = 20


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """When a run that climbs a reward is stopped, see `train.guard`.

  Falls are in standard deviations of single clips at the start, and count only
  if they exceed three standard errors too. Those of all clips together are
  shares of the start's, which must lie outside of the 95 % interval.

  Attributes:
    every: student updates between looks at its clips; 0 never looks.
    samples: clips of a look.
    watch: rewards that are not optimised and must not fall; "-NAME" where less
      is better.
    features: extractor for the Fréchet distance to the data set's clips and
      the diversity within a prompt: "digits" or "MODULE:FUNCTION", see
      `rewards.features`; empty: neither is watched.
    reward_fall: how far the true reward may fall from its best.
    watch_fall: how far a watched reward may fall from its start.
    frechet_rise: how far the Fréchet distance may rise, as a share.
    diversity_fall: how far the diversity may fall, as a share.
    patience: looks in a row beyond a limit after which the run ends.
    keep_best: whether the best student is the result of a run that was not
      stopped, too; of one that was, it always is.
  """

  every: int = 0
  samples: int = 128
  watch: tuple[str, ...] = ()
  features: str = ""
  reward_fall: float = 0.5
  watch_fall: float = 1.0
  frechet_rise: float = 1.0
  diversity_fall: float = 0.2
  patience: int = 1
  keep_best: bool = False


def check_entry(good: bool, name: str, value: Any, want: str) -> None:
  """Raises ValueError, in one sentence, unless `good`."""
  if not good:
    raise ValueError(f"config.{name} is {value!r}; it must be {want}")


def check_reward(r: RewardConfig, climbing: tuple[str, ...]) -> None:
  """Checks a reward.

  Args:
    r: the reward.
    climbing: the weights by which it is climbed.

  Raises:
    ValueError: for an entry outside its limits, or that does not fit another.
  """
  known = f"one of {LABELLING}"
  check_entry(r.labelling in LABELLING, "reward.labelling", r.labelling, known)
  for field in dataclasses.fields(r):
    value = getattr(r, field.name)
    if type(value) in (int, float):
      may_be_0 = ("warmup", "real", "held_out")
      free = field.name.startswith(may_be_0) or not field.default
      least = 0 if free else 1
      good = least <= value < math.inf
      check_entry(good, f"reward.{field.name}", value, f">= {least}")
  check_entry(r.held_out < 1, "reward.held_out", r.held_out, "0 to below 1")
  known = ("", *QUESTIONS)
  good = r.question in known
  check_entry(good, "reward.question", r.question, f"one of {known}")
  voted = r.name == VOTES
  want = "given if, and only if, config.reward.name is 'votes'"
  check_entry(voted == bool(r.votes), "reward.votes", r.votes, want)
  alone = not voted or climbing == ("reward_weight",)
  want = "climbed by reward_weight alone where it is 'votes'"
  check_entry(alone, "reward.name", r.name, want)


def check_guard(
  g: GuardConfig,
  r: RewardConfig,
  climbing: tuple[str, ...],
  log_every: int,
) -> None:
  """Checks a guard of a reward; the rest is as in `check_reward`.

  Args:
    g: the guard.
    r: the reward.
    climbing: the weights by which it is climbed.
    log_every: updates between lines of metrics.

  Raises:
    ValueError: see above.
  """
  want = "0, as no weight of config.distill climbs a reward"
  check_entry(climbing or not g.every, "guard.every", g.every, want)
  seen = g.watch or not (g.every and climbing and r.votes)
  want = "given, as votes say nothing of new clips"
  check_entry(seen, "guard.watch", g.watch, want)
  want = f"0, or a multiple of log_every ({log_every})"
  good = g.every >= 0 and g.every % log_every == 0
  check_entry(good, "guard.every", g.every, want)
  for name, least in (("samples", 2), ("patience", 1)):
    value = getattr(g, name)
    check_entry(value >= least, f"guard.{name}", value, f"at least {least}")
  for name in ("reward_fall", "watch_fall", "frechet_rise", "diversity_fall"):
    value = getattr(g, name)
    check_entry(0 <= value < math.inf, f"guard.{name}", value, "0 or more")
