"""What a training run can be told, as frozen dataclasses.

A config file returns an `ml_collections.ConfigDict`, by `complete`;
`from_config_dict` turns it into a `TrainConfig` at the edge of the program, and
nothing further in ever sees a ConfigDict.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dollar_jax.models.configs import LatentRewardConfig, WanConfig
from dollar_jax.parallel.mesh_config import MeshConfig
from dollar_jax.train.reward_config import (
  GuardConfig,
  RewardConfig,
  check_entry,
  check_guard,
  check_reward,
)

if typing.TYPE_CHECKING:
  from dollar_jax.data.pipeline import ReadAhead

TASKS = ("teacher", "distill")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """One network's optimiser.

  Attributes:
    name: "adamw" or "muon" (matrices by Muon, the rest by Adam).
    learning_rate: peak learning rate.
    warmup_steps: updates of linear warm-up.
    schedule: "constant", "cosine" or "linear", to zero at the last update.
    b1: first-moment decay (Muon's momentum too).
    b2: second-moment decay.
    weight_decay: decoupled weight decay, on matrices only.
    clip_norm: largest global gradient norm; 0 does not clip.
    moment_dtype: type of the first moment, "float32" or "bfloat16".
    ema: decay of the parameter average, warmed up; 0 keeps none.
    accumulate: microbatches a step is split into.
  """

  name: str = "adamw"
  learning_rate: float = 1e-4
  warmup_steps: int = 0
  schedule: str = "constant"
  b1: float = 0.9
  b2: float = 0.999
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  moment_dtype: str = "float32"
  ema: float = 0.0
  accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where videos and prompts come from.

  Attributes:
    source: "moving_digits", the folder of a prepared latent set, or several,
      "FOLDER=WEIGHT,FOLDER=WEIGHT".
    batch_size: global batch of a step.
    read_ahead: batches that a process reads before they are asked for, at
      most; 0 reads each when it is.
    read_ahead_gib: GiB of the host's memory that these may take, at most.
    clip: frames, height and width of a clip, for `dollar plan`; empty is the
      teacher's own size. Training takes what the data set has.
    clips: for "moving_digits", how many training clips to draw.
    channels: for a new codec, its latent channels.
    whitening: for a new codec, see `LinearVAE.fit`.
    caption_dropout: share of captions dropped in teacher training.
  """

  source: str = "moving_digits"
  batch_size: int = 32
  read_ahead: int = 1
  read_ahead_gib: float = 4.0
  clip: tuple[int, ...] = ()
  clips: int = 4000
  channels: int = 32
  whitening: float = 0.5
  caption_dropout: float = 0.1

  def __post_init__(self):
    for name in ("read_ahead", "read_ahead_gib"):
      value = getattr(self, name)
      check_entry(0 <= value < math.inf, f"data.{name}", value, "0 or more")

  @property
  def ahead(self) -> "ReadAhead":
    """What `read_ahead` and `read_ahead_gib` allow, for the loader."""
    from dollar_jax.data.pipeline import ReadAhead  # with grain, which is slow

    return ReadAhead(self.read_ahead, self.read_ahead_gib * 2**30)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """The losses of the few-step student (method of arXiv 2412.15689).

  Attributes:
    grid: the K times at which the student is evaluated, 1 first; empty takes
      an even grid of `num_steps`, shifted.
    num_steps: K, where `grid` is empty.
    grid_shift: time shift of the even grid; 0 takes the model's own.
    inputs: "simulate" (the student's own rollouts; prompts suffice) or
      "data" (noised real latents).
    fresh_noise: share of fresh noise between steps, 0 to 1.
    guidance: standard guidance scale of the teacher.
    negative_prompt: what it leads away from; empty takes the teacher's own.
    vsd_weight: weight of variational score distillation.
    cd_weight: weight of consistency distillation, beta_CD.
    reward_weight: weight of the latent reward, beta_FT.
    ddpo_weight: weight of a policy gradient on the true reward itself.
    pixel_weight: weight of the true reward's gradient, through the decoder.
    score_steps: fake-score updates per student update.
    cd_warmup: first updates, by the consistency loss alone: a student of one
      or two steps starts so far from the data that VSD would collapse it.
    score_warmup: fake-score updates before the student's first one by VSD:
      its samples are far from what the fake score starts from.
    time_low: lower end of the score times, before the shift.
    time_high: upper end.
    cd_grid: N, points of the teacher's grid for consistency.
    cd_jump: k, grid points the teacher jumps.
    huber: pseudo-Huber constant of the consistency loss.
  """

  grid: tuple[float, ...] = ()
  num_steps: int = 4
  grid_shift: float = 0.0
  inputs: str = "simulate"
  fresh_noise: float = 1.0
  guidance: float = 3.0
  negative_prompt: str = ""
  vsd_weight: float = 1.0
  cd_weight: float = 0.5
  reward_weight: float = 0.0
  ddpo_weight: float = 0.0
  pixel_weight: float = 0.0
  score_steps: int = 5
  cd_warmup: int = 0
  score_warmup: int = 0
  time_low: float = 0.02
  time_high: float = 0.98
  cd_grid: int = 50
  cd_jump: int = 5
  huber: float = 0.05

  @property
  def consistency_alone(self) -> "DistillConfig":
    """The losses of the first `cd_warmup` updates."""
    off = {**dict.fromkeys(self.climbing, 0.0), "vsd_weight": 0.0}
    return dataclasses.replace(self, **off)

  @property
  def climbing(self) -> tuple[str, ...]:
    """The weights by which a reward is climbed, in one way or another."""
    ways = "reward_weight", "ddpo_weight", "pixel_weight"
    return tuple(name for name in ways if getattr(self, name))

  @property
  def acts_on_samples(self) -> bool:
    """Whether a loss looks at what the student makes of its own inputs."""
    return any((self.vsd_weight, self.reward_weight, self.pixel_weight))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When state is saved.

  Attributes:
    every: updates between checkpoints; the last update is always saved.
    minutes: time after which a run saves that has not; 0 goes by updates only.
    keep: checkpoints kept.
  """

  every: int = 500
  minutes: float = 0.0
  keep: int = 3


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A whole run.

  Attributes:
    task: "teacher" or "distill" (with or without a reward).
    steps: updates of the teacher, or of the student.
    seed: seed of every random stream.
    teacher: for "distill", a model folder or run, the name of a model in the
      Hugging Face cache, or "embedded".
    student: a model folder or run to start the student from; empty is the
      teacher. A run also lends its fake score.
    dtype: compute type of the trained networks.
    frozen_dtype: type in which frozen networks are kept and computed.
    remat: what the backward pass recomputes, one of
      `models.configs.REMATS`.
    score_remat: the same for the fake score, whose step has more room; empty
      is `remat`.
    scan: whether a network's blocks run under `nn.scan`: compiles faster,
      runs slower on a CPU.
    attention: what carries attention out, one of `models.configs.KERNELS`.
    context: how tokens on several devices meet, one of
      `models.configs.CONTEXTS`.
    lora_rank: rank of the adapters that are trained in place of the student
      and the fake score, which then share the teacher's weights; 0 trains
      whole networks. For "distill".
    log_every: updates between lines of metrics.
    model: the transformer, for "teacher".
    shift: the model's time shift, for "teacher".
    mesh: how the devices are arranged, see `MeshConfig`.
    data: see `DataConfig`.
    optimizer: of the teacher or the student.
    score_optimizer: of the fake score.
    reward_optimizer: of the latent reward model.
    distill: see `DistillConfig`.
    reward: see `RewardConfig`.
    latent_reward: size of the latent reward model.
    guard: see `GuardConfig`.
    checkpoint: see `CheckpointConfig`.
    tensorboard: whether to write TensorBoard events beside the JSON lines.
  """

  task: str = "teacher"
  steps: int = 1000
  seed: int = 0
  teacher: str = "embedded"
  student: str = ""
  dtype: str = "float32"
  frozen_dtype: str = "float32"
  remat: str = "none"
  score_remat: str = ""
  scan: bool = True
  attention: str = "auto"
  context: str = "auto"
  lora_rank: int = 0
  log_every: int = 10
  model: WanConfig = WanConfig()
  shift: float = 1.0
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  score_optimizer: OptimizerConfig = OptimizerConfig()
  reward_optimizer: OptimizerConfig = OptimizerConfig()
  distill: DistillConfig = DistillConfig()
  reward: RewardConfig = RewardConfig()
  latent_reward: LatentRewardConfig = LatentRewardConfig()
  guard: GuardConfig = GuardConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  tensorboard: bool = False

  def __post_init__(self):
    check_entry(self.task in TASKS, "task", self.task, f"one of {TASKS}")
    check_entry(self.steps >= 1, "steps", self.steps, "at least 1")
    check_entry(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
    check_entry(self.log_every >= 1, "log_every", self.log_every, "at least 1")
    check_entry(self.shift > 0, "shift", self.shift, "above 0")
    check_entry(self.lora_rank >= 0, "lora_rank", self.lora_rank, "0 or more")
    alone = self.task == "distill" or not self.lora_rank
    check_entry(alone, "lora_rank", self.lora_rank, "0 for a teacher")
    for name in ("every", "keep"):
      value = getattr(self.checkpoint, name)
      check_entry(value >= 1, f"checkpoint.{name}", value, "at least 1")
    minutes = self.checkpoint.minutes
    check_entry(
      0 <= minutes < math.inf, "checkpoint.minutes", minutes, "0 or more"
    )
    for name in ("dtype", "frozen_dtype"):
      value = getattr(self, name)
      allowed = ("float32", "bfloat16")
      check_entry(value in allowed, name, value, f"one of {allowed}")
    batch, drop = self.data.batch_size, self.data.caption_dropout
    check_entry(batch >= 1, "data.batch_size", batch, "at least 1")
    check_entry(0 <= drop <= 1, "data.caption_dropout", drop, "between 0 and 1")
    _check_optimizer(self.optimizer, "optimizer", batch, "data")
    clip = self.data.clip
    fits = len(clip) in (0, 3) and all(size >= 1 for size in clip)
    check_entry(fits, "data.clip", clip, "empty, or frames, height and width")
    source = "a folder of prepared latents, or 'moving_digits'"
    check_entry(bool(self.data.source), "data.source", self.data.source, source)
    if self.task == "distill":
      teacher = "a model folder, a run, or 'embedded'"
      check_entry(bool(self.teacher), "teacher", self.teacher, teacher)
      _check_distill(self.distill)
      _check_optimizer(self.score_optimizer, "score_optimizer", batch, "data")
      climbing = self.distill.climbing
      if climbing:
        check_reward(self.reward, climbing)
      if self.distill.reward_weight:
        batch = self.reward.batch_size
        optimizer = self.reward_optimizer
        _check_optimizer(optimizer, "reward_optimizer", batch, "reward")
        # or its metrics would fall between the lines that are logged
        every = self.reward.every
        want = f"a multiple of log_every ({self.log_every})"
        check_entry(every % self.log_every == 0, "reward.every", every, want)
      check_guard(self.guard, self.reward, climbing, self.log_every)


def _check_optimizer(
  o: OptimizerConfig, name: str, batch: int, group: str
) -> None:
  check_entry(
    o.learning_rate >= 0, f"{name}.learning_rate", o.learning_rate, ">= 0"
  )
  check_entry(0 <= o.ema < 1, f"{name}.ema", o.ema, "0 to below 1")
  split = o.accumulate
  check_entry(split >= 1, f"{name}.accumulate", split, "at least 1")
  want = f"a multiple of {name}.accumulate ({split})"
  check_entry(batch % split == 0, f"{group}.batch_size", batch, want)


def _check_distill(d: DistillConfig) -> None:
  def check(good: bool, name: str, want: str) -> None:
    check_entry(good, f"distill.{name}", getattr(d, name), want)

  check(d.num_steps >= 1, "num_steps", "at least 1")
  check(d.grid_shift >= 0, "grid_shift", "above 0, or 0 for the model's own")
  check(d.inputs in ("simulate", "data"), "inputs", "'simulate' or 'data'")
  check(0 <= d.fresh_noise <= 1, "fresh_noise", "between 0 and 1")
  check(d.vsd_weight >= 0, "vsd_weight", "0 or more")
  check(d.cd_weight >= 0, "cd_weight", "0 or more")
  check(d.reward_weight >= 0, "reward_weight", "0 or more")
  check(d.ddpo_weight >= 0, "ddpo_weight", "0 or more")
  check(d.pixel_weight >= 0, "pixel_weight", "0 or more")
  noisy = d.fresh_noise > 0 and (len(d.grid) or d.num_steps) > 1
  want = "0, as the student has no noise between its steps to learn from"
  check(noisy or not d.ddpo_weight, "ddpo_weight", want)
  some = d.acts_on_samples or d.cd_weight or d.ddpo_weight
  check(some, "vsd_weight", "above 0, or another weight must be")
  check(d.score_steps >= 1, "score_steps", "at least 1")
  check(d.score_warmup >= 0, "score_warmup", "0 or more")
  check(d.cd_warmup >= 0, "cd_warmup", "0 or more")
  check(not d.cd_warmup or d.cd_weight > 0, "cd_warmup", "0, as cd_weight is 0")
  ordered = 0 <= d.time_low < d.time_high <= 1
  check(ordered, "time_low", f"from 0 to below time_high ({d.time_high})")
  check(1 <= d.cd_jump <= d.cd_grid, "cd_jump", f"1 to {d.cd_grid} (cd_grid)")
  check(d.huber > 0, "huber", "above 0")


def complete(values: Mapping[str, Any]) -> ConfigDict:
  """What a config file returns: `values`, and the defaults of all the rest.

  Only entries that are there can be overridden on the command line.
  """
  config = ConfigDict(dataclasses.asdict(TrainConfig()))
  config.update(values)
  return config


def to_dict(config: Any) -> dict[str, Any]:
  """A config dataclass as plain nested dicts, tuples as lists."""
  plain = dataclasses.asdict(config)
  return _listed(plain)


def _listed(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _listed(v) for k, v in value.items()}
  return [_listed(v) for v in value] if isinstance(value, tuple) else value


def from_config_dict(
  values: Mapping[str, Any], kind: type = TrainConfig, prefix: str = "config"
) -> Any:
  """Builds a config dataclass from nested mappings, checking every entry.

  Args:
    values: a ConfigDict or dict; what is absent keeps its default.
    kind: the dataclass to build.
    prefix: how the error messages call it.

  Raises:
    ValueError: for an unknown key, a value of the wrong type, or one outside
      its limits.
  """
  hints = typing.get_type_hints(kind)
  unknown = sorted(set(values) - set(hints))
  if unknown:
    raise ValueError(
      f"{prefix} has no entry {unknown[0]!r}; it has {', '.join(hints)}"
    )
  out = {}
  for name in values:
    out[name] = _convert(values[name], hints[name], f"{prefix}.{name}")
  return kind(**out)


def _convert(value: Any, want: Any, name: str) -> Any:
  if dataclasses.is_dataclass(want):
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
      raise ValueError(f"{name} is {value!r}; it must be a group of entries")
    return from_config_dict(dict(value.items()), want, name)
  origin = typing.get_origin(want)
  if origin is tuple and isinstance(value, list | tuple):
    inner = typing.get_args(want)
    if inner[-1] is not ... and len(value) != len(inner):
      raise ValueError(f"{name} is {value!r}; it must be {len(inner)} values")
    return tuple(_convert(v, inner[0], name) for v in value)
  if origin in (types.UnionType, typing.Union):
    return value
  if want is float and type(value) is int:
    return float(value)
  if origin is None and type(value) is want:
    return value
  label = getattr(want, "__name__", str(want))
  raise ValueError(f"{name} is {value!r}; it must be of type {label}")
