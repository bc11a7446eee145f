"""What to change in a run that does not fit into memory, cheapest first."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dollar_jax.parallel.mesh import mesh_shape
from dollar_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Remedy:
  """One change, or several.

  Attributes:
    config: the run with it.
    flags: how it is asked for on the command line.
    costs: what it costs, for people.
  """

  config: TrainConfig
  flags: tuple[str, ...]
  costs: str


def remedies(config: TrainConfig, devices: int) -> Iterator[Remedy]:
  """Changes to try one after another: each alone, then all together.

  Args:
    config: a run that does not fit.
    devices: of the machine.
  """
  steps = list(_steps(config, devices))
  for changes, costs in steps:
    yield _apply(config, changes, costs)
  together, prices = {}, {}
  for changes, costs in steps:
    together |= changes
    prices[next(iter(changes))] = costs  # a later one is stronger
    if len(prices) > 1:
      yield _apply(config, together, " and ".join(prices.values()))


def _steps(
  config: TrainConfig, devices: int
) -> Iterator[tuple[dict[str, Any], str]]:
  """Single changes, by the entries of the config that they set."""
  data, fsdp, tensor, context = mesh_shape(config.mesh, devices)
  # a policy of its own would leave the fake score as it is
  alike = {"score_remat": ""} if config.score_remat else {}
  policies = {config.remat, config.score_remat or config.remat}
  if not policies <= {"attention", "dots", "full", "offload"}:
    yield (
      {"remat": "attention", **alike},
      "part of a forward pass more for every gradient",
    )
  if not policies <= {"full", "offload"}:
    costs = "a forward pass more for every gradient"
    yield {"remat": "full", **alike}, costs
  while data % 2 == 0 and data > config.mesh.slices:
    data, fsdp = data // 2, fsdp * 2
    yield {"mesh.data": 0, "mesh.fsdp": fsdp}, "wider gathers of parameters"
  batch = config.data.batch_size
  videos = batch // (data * fsdp)
  for count in (2, 4, 8):
    if count > config.optimizer.accumulate and videos % count == 0:
      change = {"optimizer.accumulate": count}
      if config.task == "distill":
        change["score_optimizer.accumulate"] = count
      yield change, "more gathers of parameters"
  for ways in (2, 4, 8):
    if ways > context and devices % (ways * tensor) == 0:
      shards = devices // (ways * tensor)
      changes = {"mesh.context": ways}
      if fsdp > shards:
        changes["mesh.fsdp"] = shards
      yield changes, f"exchanges of tokens among {ways} devices"
  if policies != {"offload"}:
    costs = "a forward pass more for every gradient, transfers to the host"
    yield {"remat": "offload", **alike}, costs


def _apply(config: TrainConfig, changes: dict[str, Any], costs: str) -> Remedy:
  return Remedy(*changed(config, changes), costs)


def changed(
  config: TrainConfig, changes: dict[str, Any]
) -> tuple[TrainConfig, tuple[str, ...]]:
  """A run with other entries, and how they are asked for.

  Args:
    config: the run.
    changes: values by entry, such as "mesh.fsdp".

  Raises:
    ValueError: if a value does not fit.
  """
  flags = tuple(f"--config.{key}={value}" for key, value in changes.items())
  for key, value in changes.items():
    group, _, entry = key.rpartition(".")
    if group:
      inner = dataclasses.replace(getattr(config, group), **{entry: value})
      config = dataclasses.replace(config, **{group: inner})
    else:
      config = dataclasses.replace(config, **{entry: value})
  return config, flags
