"""The programs of a run, compiled for its mesh and measured without running.

`trace` and `measure` compile; `expectations` says by hand what it should find.
"""

import dataclasses
import functools
import hashlib
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dollar_jax.models.attention import Choice
from dollar_jax.parallel import hlo
from dollar_jax.parallel.flops import matmul_flops
from dollar_jax.parallel.mesh import batch_shards, platform_of
from dollar_jax.train import cost
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.loop import Program
from dollar_jax.train.models import attention_choice
from dollar_jax.train.outline import Outline
from dollar_jax.train.state import NetworkState
from dollar_jax.train.traffic import network_traffic, step_traffic
from dollar_jax.typing import PyTree

_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
"""Compiler options by platform. Without a GPU to try them on, XLA takes
default tiles for its own matrix products, and finds none for narrow ones."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_LARGE = re.compile(r"memory required[^(]*\(([\d.]+)([KMGT]?)\)")


@dataclasses.dataclass(frozen=True)
class Measured:
  """What compiling a program tells; bytes and FLOPs are those of a device.

  Attributes:
    peak_bytes: of memory while it runs, with what else stays there; None
      where the compiler gave up for want of memory.
    needs_bytes: what the compiler says that it wanted, if it gave up.
    argument_bytes: of what it is called with.
    temporary_bytes: of its peak beyond its arguments: activations, gradients
      and what is gathered.
    waiting_bytes: of what stays on the device but is no argument.
    flops: matmul FLOPs.
    collectives: {"count", "bytes"} by kind.
    summed_gathers: gathers that XLA has turned into sums, and their bytes.
    seconds: that compiling took.
  """

  peak_bytes: int | None
  needs_bytes: int | None
  argument_bytes: int
  temporary_bytes: int | None
  waiting_bytes: int
  flops: float
  collectives: dict[str, dict[str, int]]
  summed_gathers: dict[str, int]
  seconds: float


@dataclasses.dataclass(frozen=True)
class Expected:
  """What a program cannot do without; of a device, by hand.

  Attributes:
    flops: matmul FLOPs; None where nobody has counted them.
    factor: by how much more is needed as activations are made again.
    collectives: bytes by kind; None where nobody has counted them.
  """

  flops: float | None
  factor: float
  collectives: dict[str, int] | None


@dataclasses.dataclass(frozen=True)
class Traced:
  """A program before it is compiled; bytes and FLOPs are those of a device.

  Attributes:
    lowered: what a compiler takes.
    flops: see `Measured`.
    argument_bytes: see `Measured`.
    waiting_bytes: see `Measured`.
  """

  lowered: jax.stages.Lowered
  flops: float
  argument_bytes: int
  waiting_bytes: int

  @property
  def digest(self) -> str:
    """Equal for equal programs, whatever config has made them."""
    return hashlib.sha256(self.lowered.as_text().encode()).hexdigest()


def trace(program: Program, resident: PyTree, mesh: Mesh) -> Traced:
  """Traces a program for its mesh's devices.

  Args:
    program: shapes of its arguments are placed on the mesh.
    resident: shapes of all that stays on the devices.
    mesh: of devices that may not be here.
  """
  with jax.set_mesh(mesh):
    traced = program.run.trace(*program.args)
    flops = matmul_flops(traced.jaxpr) / mesh.size
    return Traced(traced.lower(), flops, *held_bytes(program, resident))


def measure(traced: Traced, mesh: Mesh, limit: float = 0.0) -> Measured:
  """Compiles a program for its mesh's devices.

  Args:
    traced: see `trace`.
    mesh: of devices that may not be here.
    limit: bytes of a device; a program whose arguments alone are more is not
      compiled. 0 is no limit.

  Raises:
    ValueError: if it does not compile, unless for memory.
  """
  start = time.monotonic()
  arguments, waiting = traced.argument_bytes, traced.waiting_bytes
  too_large = functools.partial(
    Measured,
    peak_bytes=None,
    argument_bytes=arguments,
    temporary_bytes=None,
    waiting_bytes=waiting,
    flops=traced.flops,
    collectives={},
    summed_gathers={"count": 0, "bytes": 0},
  )
  if limit and arguments + waiting > limit:
    seconds = time.monotonic() - start
    return too_large(needs_bytes=arguments + waiting, seconds=seconds)
  try:
    with jax.set_mesh(mesh):
      options = _OPTIONS.get(platform_of(mesh))
      compiled = traced.lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    needs = _TOO_LARGE.search(str(error))
    if needs is None:
      reason = str(error).splitlines()[0]
      raise ValueError(f"XLA does not compile it: {reason}") from error
    bytes_ = int(float(needs[1]) * _UNITS[needs[2]])
    seconds = time.monotonic() - start
    return too_large(needs_bytes=bytes_ + waiting, seconds=seconds)
  memory = compiled.memory_analysis()
  peak = getattr(memory, "peak_memory_in_bytes", 0) or (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  found = hlo.collectives(compiled.as_text())
  summed = [one for one in found if one.gather and one.kind == "all-reduce"]
  return Measured(
    peak_bytes=peak + waiting,
    needs_bytes=None,
    argument_bytes=arguments,
    temporary_bytes=max(peak - arguments, 0),
    waiting_bytes=waiting,
    flops=traced.flops,
    collectives=hlo.total(found),
    summed_gathers={
      "count": sum(one.runs for one in summed),
      "bytes": sum(one.runs * one.bytes for one in summed),
    },
    seconds=time.monotonic() - start,
  )


def held_bytes(program: Program, resident: PyTree) -> tuple[int, int]:
  """Bytes a device of a program's arguments, and of what else stays there."""
  leaves = jax.tree.leaves(program.args)
  passed = {id(leaf) for leaf in leaves}
  waiting = [
    leaf for leaf in jax.tree.leaves(resident) if id(leaf) not in passed
  ]
  return sum(map(bytes_of, leaves)), sum(map(bytes_of, waiting))


def expectations(
  config: TrainConfig, outline: Outline, mesh: Mesh
) -> dict[str, Expected]:
  """What the programs of a run cannot do without, by their names."""
  base, task = outline.base, outline.task
  denoiser, size = base.denoiser, config.data.batch_size
  latent = base.recipe.latent_shape
  text = base.null_prompt["null_text"].shape
  net = cost.network_cost(denoiser.config, size, latent, text)
  choice = attention_choice(base, mesh)
  student = task.student if isinstance(task, DistillTask) else None
  placed = task.resident()["teacher"]
  params = placed if student else placed.params
  adapters = task.resident()["student"].params if config.lora_rank else None
  traffic = step_traffic(
    config,
    student,
    network_traffic(denoiser, params, choice, mesh, latent, text, adapters),
    mesh,
  )
  ideals: dict[str, dict[str, float]] = {}
  passes = trained_passes(config)
  if student is None:
    ideals["teacher"] = {"teacher": net.forward + net.backward}
  else:
    c, critic = config.distill, cost.Cost(0, 0)
    if task.tuner is not None:
      count = functools.partial(
        cost.latent_reward_cost, task.tuner.model.config
      )
      critic = count(size, latent, text)
      both = 2 if config.reward.votes else 1  # clips of a pair
      fitted = count(both * config.reward.batch_size, latent, text)
      ideals["reward"] = {"reward": fitted.forward + fitted.backward}
      ideals["sampler"] = {"samples": net.forward}
    ideals["student"] = cost.student_ideal(student, net, critic)
    alone = dataclasses.replace(student, config=c.consistency_alone)
    ideals["warm-up"] = cost.student_ideal(alone, net, critic)
    ideals["score"] = cost.score_ideal(net)
  found = {}
  for name, parts in ideals.items():
    ideal = sum(parts.values())
    remat = config.remat
    if name == "score":
      remat = config.score_remat or remat
    again = passes.get(name, 0) * _made_again(net, remat, choice)
    sent = traffic.get(name)
    # nobody has counted what a decoder and a reward on its pixels multiply
    whole = name != "student" or not config.distill.pixel_weight
    found[name] = Expected(
      flops=ideal / mesh.size if whole else None,
      factor=1 + again / ideal,
      collectives=None if sent is None else dict(sent),
    )
  return found


def trained_passes(config: TrainConfig) -> dict[str, int]:
  """How often a program applies its network with a gradient, by its name."""
  c = config.distill
  used = c.acts_on_samples, c.cd_weight, c.ddpo_weight
  return {
    "teacher": 1,
    "score": 1,
    "warm-up": 1,
    "student": sum(map(bool, used)),
  }


def _made_again(net: cost.Cost, remat: str, choice: Choice) -> float:
  """FLOPs that the backward pass of a network adds to its gradient."""
  fused = choice.kernel != "xla" or choice.context == "ring"
  again = {
    "none": 0,
    "products": 0,
    "narrow": net.wider,
    "results": net.forward - net.attention - net.narrower,
    "attention": net.forward - net.attention,
    "dots": net.attention,  # products of batches
  }.get(remat, net.forward)
  # neither a fused kernel nor a policy that keeps attention keeps its scores
  if fused or remat in ("products", "narrow", "results", "attention"):
    again += net.attention / 2
  return again


def row(
  measured: Measured,
  expected: Expected | None,
  peak_flops: float,
  limit: float,
) -> dict[str, Any]:
  """A program as the plan has it: what was found beside what was expected.

  Args:
    measured: what was found.
    expected: what was counted by hand, if anybody has.
    peak_flops: FLOP/s of a device at its peak; 0 is not known.
    limit: bytes of a device; 0 is not known.
  """
  expected = expected or Expected(None, 1.0, None)
  bytes_ = sum(kind["bytes"] for kind in measured.collectives.values())
  by_hand = sum((expected.collectives or {}).values())
  peak = measured.peak_bytes
  found = dataclasses.asdict(measured)
  return found | {
    "fits": peak is not None and (not limit or peak <= limit),
    "wanted_bytes": measured.needs_bytes if peak is None else peak,
    "ideal_flops": expected.flops,
    "flops_ratio": expected.flops and measured.flops / expected.flops,
    "stated_factor": expected.factor,
    "collective_bytes": bytes_,
    "collectives_by_hand": expected.collectives,
    "collective_ratio": bytes_ / by_hand if by_hand else None,
    "lower_bound_seconds": measured.flops / peak_flops if peak_flops else None,
  }


def warnings(
  config: TrainConfig, outline: Outline, mesh: Mesh, rows: dict[str, Any]
) -> list[str]:
  """What a user would rather know before the run than after it."""
  found = []
  for name, one in rows.items():
    summed = one["summed_gathers"]
    if summed["count"]:
      found.append(
        f"{name}: XLA has turned {summed['count']} gathers "
        f"({summed['bytes'] / 2**20:,.1f} MiB) into sums, which send twice as "
        "much; take a smaller config.mesh.fsdp"
      )
  task, groups = outline.task, batch_shards(mesh)
  if isinstance(task, DistillTask) and config.distill.inputs == "simulate":
    steps, size = len(task.student.grid), config.data.batch_size
    if size % (steps * groups):
      found.append(
        f"rollouts of {-(-size // steps)} videos do not divide among {groups} "
        "groups of devices, of which some repeat what others do; make "
        f"config.data.batch_size a multiple of {steps * groups}"
      )
  return found


def update_total(
  config: TrainConfig, rows: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """One update of the student, or teacher, with all that belongs to it."""
  runs = dict.fromkeys(rows, 1.0)
  if config.task == "distill":
    runs["score"] = config.distill.score_steps
    size, guard = config.data.batch_size, config.guard
    runs["sampler"] = config.reward.labels / size / config.reward.every
    runs["guard"] = guard.every and guard.samples / size / guard.every
    decoded = "sampler", "guard", "policy"
    runs["decode"] = sum(runs[name] for name in decoded if name in rows)
    refits = 0 if config.reward.votes else config.reward.steps
    runs["reward"] = refits / config.reward.every
    runs["warm-up"] = 0.0
  bound = flops = 0.0
  for name, one in rows.items():
    flops += runs[name] * one["flops"]
    bound += runs[name] * (one["lower_bound_seconds"] or 0.0)
  return {
    "runs": {name: runs[name] for name in rows},
    "flops": flops,
    "lower_bound_seconds": bound or None,
  }


def resident_bytes(resident: dict[str, PyTree]) -> dict[str, int]:
  """Bytes a device of what stays there: parameters, moments, EMA, frozen."""
  sums = dict.fromkeys(("parameters", "moments", "ema", "frozen"), 0)
  for tree in resident.values():
    if not isinstance(tree, NetworkState):
      sums["frozen"] += _sum(tree)
      continue
    sums["parameters"] += _sum(tree.params)
    sums["moments"] += _sum(tree.opt_state)
    sums["ema"] += _sum(tree.ema)
  return sums


def bytes_of(leaf: Any) -> int:
  """Bytes of a placed array on one device."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return 8
  shape = leaf.sharding.shard_shape(leaf.shape)
  return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def _sum(tree: PyTree) -> int:
  return sum(bytes_of(leaf) for leaf in jax.tree.leaves(tree))
