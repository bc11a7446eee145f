"""The strategy of a run that has least to compute, of those that fit.

A strategy is what backward passes make again, how many microbatches a step is
split into, and how the devices lie along data, fsdp and context. Compiling one
takes minutes, so that little is compiled: FLOPs are counted in jaxprs, what is
sent is counted by hand, and memory is what today's strategy needs, compiled,
and what another keeps beyond it. What is compiled corrects the predictions.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dollar_jax.parallel.flops import matmul_flops
from dollar_jax.parallel.mesh import batch_shards, make_mesh
from dollar_jax.parallel.rules import by_batch
from dollar_jax.train import planning
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.models import attention_choice
from dollar_jax.train.outline import Outline, outline_run
from dollar_jax.train.remedies import changed
from dollar_jax.typing import Array, Params

POLICIES = (
  "none",
  "products",
  "narrow",
  "results",
  "attention",
  "dots",
  "full",
)
"""Of rematerialisation. "offload" is left out: it saves memory and no FLOPs."""

FLOPS_STEP, SENT_STEP = 1e-3, 1e-2
"""Shares of today's that make no difference."""

CORRECTION = 0.1, 3.0
"""By how much a prediction of what is kept may be put right."""

PlanFn = Callable[[TrainConfig, list[str]], dict[str, Any]]
"""`f(config, programs) -> plan`, see `programs.plan.Planner.plan`."""


@dataclasses.dataclass(frozen=True)
class Place:
  """A run on one arrangement of the devices, its policies as today.

  Attributes:
    changes: entries of the config that make it, as they are not today.
    mesh: the devices.
    outline: see `outline_run`.
    held: bytes of arguments and of what waits, by program.
    gradients: bytes of float32 gradients, and of their sum over microbatches.
  """

  changes: dict[str, Any]
  mesh: Mesh
  outline: Outline
  held: dict[str, int]
  gradients: int

  @property
  def key(self) -> tuple[int, ...]:
    """Sizes of the mesh."""
    return tuple(self.mesh.shape.values())


@dataclasses.dataclass(frozen=True)
class Strategy:
  """A way to run.

  Attributes:
    config: the run.
    flags: how it is asked for, where it is not as today.
    place: its devices.
    flops: of an update, a device.
    sent: bytes of an update, a device, by hand.
  """

  config: TrainConfig
  flags: tuple[str, ...]
  place: Place
  flops: float
  sent: float

  def setting(self, program: str) -> tuple[str, int]:
    """Policy and microbatches of a program that is trained."""
    c = self.config
    if program == "score":
      return c.score_remat or c.remat, c.score_optimizer.accumulate
    return c.remat, c.optimizer.accumulate


@dataclasses.dataclass(frozen=True)
class Applied:
  """A network applied to one video of every group, with its gradient.

  Attributes:
    flops: matmul FLOPs of a device.
    kept: bytes a device that the forward pass leaves for the backward pass,
      apart from parameters.
  """

  flops: float
  kept: float


class Search:
  """Ranks the strategies of a run, and learns from those that are compiled."""

  def __init__(
    self,
    config: TrainConfig,
    plan: dict[str, Any],
    devices: Sequence[jax.Device],
  ):
    """Traces every policy.

    Args:
      config: the run as it is.
      plan: of all its programs.
      devices: of the machine.
    """
    self._config, self._rows = config, plan["programs"]
    self._limit = plan["limit_bytes"] or math.inf
    self._runs = plan["update"]["runs"]
    self._passes = {
      name: passes
      for name, passes in planning.trained_passes(config).items()
      if name in self._rows
    }
    self._applied: dict[str, Applied] = {}
    self._sent: dict[tuple, dict[str, float]] = {}
    self._scale = dict.fromkeys(self._passes, 1.0)
    self._failed: set[tuple] = set()
    self._avoided: set[tuple[int, ...]] = set()
    self._places = list(_places(config, devices, list(self._rows)))
    self.today = self._strategy(self._places[0], {})
    for name, row in self._rows.items():
      if not row["fits"]:
        self.refuse(self.today, name)
    self._ranked = sorted(self._strategies(), key=self._rank)

  def best(self) -> Strategy | None:
    """The best strategy that may fit, by what is known so far."""
    for strategy in self._ranked:
      if strategy.place.key in self._avoided:
        continue
      failed = any(
        self.key(strategy, name) in self._failed for name in self._rows
      )
      predicted = self.predicted(strategy).values()
      if not failed and max(predicted) <= self._limit:
        return strategy
    return None

  def predicted(self, strategy: Strategy) -> dict[str, float]:
    """Bytes of a device while each program that is trained runs."""
    found = {}
    for name in self._passes:
      rest, kept = self._parts(strategy, name)
      found[name] = rest + kept * (self._scale[name] if kept > 0 else 1.0)
    return found

  def refuse(self, strategy: Strategy, name: str) -> None:
    """Takes account of a program that is not to be had."""
    self._failed.add(self.key(strategy, name))

  def learn(self, strategy: Strategy, name: str, row: dict[str, Any]) -> bool:
    """Takes account of a program that was compiled.

    Args:
      strategy: under which.
      name: of the program.
      row: see `planning.row`.

    Returns:
      Whether it fits, and sends no more gathers as sums than today's does.
    """
    self._learn_memory(strategy, name, row)
    summed = (r["summed_gathers"]["bytes"] for r in (row, self._rows[name]))
    if operator.gt(*summed):  # its mesh has too narrow shards
      self._avoided.add(strategy.place.key)
      return False
    if not row["fits"]:
      self.refuse(strategy, name)
    return row["fits"]

  def _learn_memory(
    self, strategy: Strategy, name: str, row: dict[str, Any]
  ) -> None:
    if name not in self._passes:
      return
    rest, kept = self._parts(strategy, name)
    if kept > 0 and row["wanted_bytes"]:
      low, high = CORRECTION
      scale = (row["wanted_bytes"] - rest) / kept
      self._scale[name] = min(max(scale, low), high)

  def _rank(self, strategy: Strategy) -> tuple:
    """Less to compute, else less to send, else less to change."""
    today = self.today
    flops = round(strategy.flops / today.flops / FLOPS_STEP)
    sent = round(strategy.sent / max(today.sent, 1.0) / SENT_STEP)
    return flops, sent, len(strategy.flags)

  def key(self, strategy: Strategy, name: str) -> tuple:
    """What a program that is compiled depends on."""
    setting = strategy.setting(name) if name in self._passes else ()
    return name, strategy.place.key, *setting

  def _strategies(self) -> Iterator[Strategy]:
    config, score = self._config, "score" in self._passes
    for place in self._places:
      shards = batch_shards(place.mesh)
      mine = config.data.batch_size // shards
      counts = [n for n in range(1, mine + 1) if mine % n == 0 and n <= 16]
      # whole weights of every layer would be kept with the activations
      gathers = place.mesh.shape["fsdp"] > 1
      policies = POLICIES[1:] if gathers else POLICIES
      options = list(itertools.product(policies, counts))
      for (remat, count), (other, times) in itertools.product(
        options, options if score else [("", 0)]
      ):
        changes = {"remat": remat, "optimizer.accumulate": count}
        if score:
          changes["score_remat"] = "" if other == remat else other
          changes["score_optimizer.accumulate"] = times
        yield self._strategy(place, changes)

  def _strategy(self, place: Place, changes: dict[str, Any]) -> Strategy:
    config = self._config
    changes = place.changes | {
      key: value
      for key, value in changes.items()
      if _entry(config, key) != value
    }
    new, flags = changed(config, changes)
    strategy = Strategy(new, flags, place, 0.0, 0.0)
    today = Strategy(config, (), self._places[0], 0.0, 0.0)
    flops = sent = 0.0
    for name, row in self._rows.items():
      one, bytes_ = row["flops"], 0.0
      if name in self._passes:
        remat, count = strategy.setting(name)
        before = self._ask(today.setting(name)[0]).flops
        videos = self._passes[name] * self._videos(today)
        one += videos * (self._ask(remat).flops - before)
        bytes_ = self._send(place, remat, count)[name]
      flops += self._runs[name] * one
      sent += self._runs[name] * bytes_
    return dataclasses.replace(strategy, flops=flops, sent=sent)

  def _videos(self, strategy: Strategy) -> float:
    """Of a batch, those of a group of devices."""
    size = strategy.config.data.batch_size
    return size / batch_shards(strategy.place.mesh)

  def _both(self, place: Place, remat: str, count: int = 0) -> TrainConfig:
    """The run where every step has the same policy."""
    changes = place.changes | {"remat": remat, "score_remat": ""}
    if count:
      changes["optimizer.accumulate"] = count
      changes["score_optimizer.accumulate"] = count
    return changed(self._config, changes)[0]

  def _ask(self, remat: str) -> Applied:
    """What a policy costs today's mesh; another shares the same otherwise."""
    if remat not in self._applied:
      place = self._places[0]
      self._applied[remat] = apply_once(place.outline, place.mesh, remat)
    return self._applied[remat]

  def _send(self, place: Place, remat: str, count: int) -> dict[str, float]:
    """Bytes that a device sends in the programs that are trained."""
    key = place.key, remat, count
    if key not in self._sent:
      config = self._both(place, remat, count)
      found = planning.expectations(config, place.outline, place.mesh)
      self._sent[key] = {
        name: sum((found[name].collectives or {}).values())
        for name in self._passes
      }
    return self._sent[key]

  def _parts(self, strategy: Strategy, name: str) -> tuple[float, float]:
    """Bytes of a program that are known, and what it keeps beyond today's."""
    today, place = self.today, strategy.place

    def videos(one: Strategy) -> float:
      return self._videos(one) / one.setting(name)[1]

    def kept(one: Strategy) -> float:
      each = self._ask(one.setting(name)[0]).kept
      each *= (
        today.place.mesh.shape["context"] / one.place.mesh.shape["context"]
      )
      return self._passes[name] * videos(one) * each

    row = self._rows[name]
    temporary = row["wanted_bytes"] - today.place.held[name]
    work = temporary - today.place.gradients - kept(today)
    tokens = videos(strategy) / place.mesh.shape["context"]
    tokens /= videos(today) / today.place.mesh.shape["context"]
    rest = place.held[name] + place.gradients + max(work, 0.0) * tokens
    return rest + kept(today), kept(strategy) - kept(today)


def apply_once(outline: Outline, mesh: Mesh, remat: str) -> Applied:
  """Traces a run's network under a policy; computes nothing.

  Args:
    outline: of the run.
    mesh: where it is.
    remat: the policy.
  """
  task, frozen = outline.task, {}
  denoiser = outline.base.denoiser.with_config(remat=remat)
  resident = task.resident()
  bind = lambda params, frozen: params  # noqa: E731
  if isinstance(task, DistillTask):
    bind, frozen = task.student.bind, {"teacher": resident["teacher"]}
    params = resident["student"].params
  else:
    params = resident["teacher"].params

  def apply(params: Params, frozen: Any, batch: Any, t: Array) -> Any:
    def ask(params: Params) -> Array:
      words = batch["text"], batch["text_mask"]
      bound = bind(params, frozen)
      return denoiser.raw(bound, batch["latents"], t, *words)

    out, backward = jax.vjp(ask, params)
    return (out, backward(out)), backward

  size, place = batch_shards(mesh), by_batch(mesh)
  batch, t = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (size, *x.shape[1:]), x.dtype, sharding=place
    ),
    (outline.batch, jax.ShapeDtypeStruct((size,), jnp.float32)),
  )
  with jax.set_mesh(mesh):
    trace = jax.make_jaxpr(apply, return_shape=True)
    jaxpr, (_, left) = trace(params, frozen, batch, t)
  own = {(x.shape, x.dtype) for x in jax.tree.leaves((params, frozen))}
  kept = sum(
    x.size * x.dtype.itemsize
    for x in jax.tree.leaves(left)
    if (x.shape, x.dtype) not in own
  )
  return Applied(matmul_flops(jaxpr) / mesh.size, kept / mesh.size)


def find(
  config: TrainConfig,
  plan: dict[str, Any],
  devices: Sequence[jax.Device],
  plan_fn: PlanFn,
) -> dict[str, Any]:
  """Compiles strategies, best first, until one fits.

  Args:
    config: the run as it is.
    plan: of all its programs.
    devices: of the machine.
    plan_fn: compiles programs of a run.

  Returns:
    `flags` of the best strategy, None if none fits; its `flops`, `sent_bytes`
    and `peak_bytes`; `of_today`, its FLOPs over today's; and the same of all
    that were `tried`, with the peak that was `predicted_bytes`.
  """
  search, tried = Search(config, plan, devices), []
  rows, known = plan["programs"], {}
  while (strategy := search.best()) is not None:
    predicted = search.predicted(strategy)
    names = list(rows)
    if strategy.place is search.today.place:
      names = list(predicted)
    found, good = {}, True
    for name in sorted(names, key=lambda n: -predicted.get(n, 0)):
      key = search.key(strategy, name)
      try:
        if key not in known:
          known[key] = plan_fn(strategy.config, [name])["programs"][name]
        found[name] = known[key]
        good = search.learn(strategy, name, found[name])
      except ValueError:  # it does not compile
        search.refuse(strategy, name)
        good = False
      if not good:
        break
    peak = max(row["wanted_bytes"] for row in (rows | found).values())
    tried.append(
      {
        "flags": list(strategy.flags),
        "flops": strategy.flops,
        "of_today": strategy.flops / search.today.flops,
        "sent_bytes": strategy.sent,
        "predicted_bytes": max(predicted.values()),
        "peak_bytes": peak,
        "fits": good,
      }
    )
    if good:
      return tried[-1] | {"tried": tried}
  return {"flags": None, "tried": tried}


def _places(
  config: TrainConfig, devices: Sequence[jax.Device], programs: list[str]
) -> Iterator[Place]:
  """Arrangements of the devices, today's first.

  Left out are those in which attention would be another kernel's, whose FLOPs
  are not to be compared, and those in which devices would wait in rollouts.
  """
  today = _place(config, {}, devices, programs)
  yield today
  total, mesh, tensor = len(devices), today.mesh, config.mesh.tensor
  choice = attention_choice(today.outline.base, mesh)
  task, steps = today.outline.task, 1
  if isinstance(task, DistillTask) and config.distill.inputs == "simulate":
    steps = len(task.student.grid)
  if config.data.batch_size % (steps * batch_shards(mesh)):
    steps = 1  # they wait today
  powers = [2**i for i in range(total.bit_length())]
  for context, fsdp in itertools.product(powers, powers):
    wanted = {"data": 0, "fsdp": fsdp, "context": context}
    changes = {
      f"mesh.{axis}": size
      for axis, size in wanted.items()
      if size != getattr(config.mesh, axis)
    }
    inner = fsdp * context * tensor
    if total % inner or (total // inner) % config.mesh.slices or not changes:
      continue
    shards = total // (context * tensor)
    if config.data.batch_size % (steps * shards):
      continue
    try:
      place = _place(config, changes, devices, programs)
      other = attention_choice(place.outline.base, place.mesh)
    except ValueError:  # such as heads that do not divide
      continue
    if place.key == today.key:
      continue
    ring = "ring" in (choice.context, other.context)
    if other.kernel == choice.kernel and (
      not ring or choice.context == other.context
    ):
      yield place


def _place(
  config: TrainConfig,
  changes: dict[str, Any],
  devices: Sequence[jax.Device],
  programs: list[str],
) -> Place:
  config, _ = changed(config, changes)
  mesh = make_mesh(config.mesh, devices)
  outline = outline_run(config, mesh)
  resident, found = (
    outline.task.resident(),
    outline.task.programs(outline.batch),
  )
  held = {
    name: sum(planning.held_bytes(found[name], resident)) for name in programs
  }
  task = isinstance(outline.task, DistillTask)
  trained = resident["student" if task else "teacher"].params
  gradients = 2 * sum(map(planning.bytes_of, jax.tree.leaves(trained)))
  return Place(changes, mesh, outline, held, gradients)


def _entry(config: TrainConfig, key: str) -> Any:
  value: Any = config
  for name in key.split("."):
    value = getattr(value, name)
  return value
