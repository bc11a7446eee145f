"""Plans a run for a machine that is not there, for `dollar plan`."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from tqdm import tqdm

import dollar_jax
from dollar_jax.files import user_cache
from dollar_jax.interop.folders import read_json, write_json
from dollar_jax.parallel import flops, hlo
from dollar_jax.parallel.mesh import batch_shards, make_mesh
from dollar_jax.parallel.topologies import Machine, open_devices, parse
from dollar_jax.programs._plan_table import best_table, plan_table
from dollar_jax.train import planning, strategies
from dollar_jax.train.config import TrainConfig, from_config_dict, to_dict
from dollar_jax.train.host_memory import host_memory
from dollar_jax.train.models import attention_choice
from dollar_jax.train.outline import Outline, outline_run
from dollar_jax.train.remedies import Remedy, remedies


def main(values: flags.FlagValues) -> None:
  """Makes the plan.

  Raises:
    ValueError: for anything in the config that does not fit, an unknown
      machine, and a run that does not fit into it.
    ModuleNotFoundError: if the compiler for that machine is not installed.
    OSError: if the file cannot be written.
  """
  if values.config is None:
    raise ValueError("no --config given; name one, e.g. a file in configs/")
  if values.best and values.programs:
    raise ValueError(
      f"--best looks at all programs of a run, but --programs is "
      f"{','.join(values.programs)}; leave it out"
    )
  config = from_config_dict(values.config.to_dict())
  machine = parse(values.topology)
  out = Path(values.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  planner = Planner(machine, values.cache, values.progress)
  plan = planner.plan(config, values.programs)
  print(plan_table(plan))
  if values.best:
    plan["best"] = planner.find_best(config, plan)
    print(best_table(plan))
    write_json(out, plan)
    if plan["best"]["flags"] is None:
      raise ValueError(_why_none(plan))
    print(f"{out}: written")
    return
  if not plan["fits"] and values.remedies:
    plan["remedy"] = planner.find_remedy(config, plan)
  write_json(out, plan)
  if not plan["fits"]:
    raise ValueError(_why_not(plan))
  print(f"{out}: written")


class Planner:
  """Compiles runs for one machine."""

  def __init__(self, machine: Machine, cache: bool, progress: bool):
    """Opens the machine's devices.

    Args:
      machine: see `topologies.parse`.
      cache: whether programs of earlier plans are taken.
      progress: whether to show a bar.
    """
    self._machine, self._cache, self._progress = machine, cache, progress
    self._devices = open_devices(machine)

  def plan(
    self, config: TrainConfig, programs: list[str] | None = None
  ) -> dict[str, Any]:
    """The plan as it is written; see docs/plans.md for its entries.

    Args:
      config: the run.
      programs: which of its programs; all if empty.

    Raises:
      ValueError: if the config is wrong, or there is no such program.
    """
    mesh, outline = self._open(config)
    found = outline.task.programs(outline.batch)
    unknown = sorted(set(programs or ()) - set(found))
    if unknown:
      raise ValueError(
        f"this run has no program {unknown[0]!r}; it has {', '.join(found)}"
      )
    names = programs or list(found)
    expected = planning.expectations(config, outline, mesh)
    rows = {}
    bar = tqdm(
      names,
      desc="plan",
      unit="program",
      disable=None if self._progress else True,
    )
    for name in bar:
      bar.set_postfix_str(name)
      measured = self._measured(config, name, outline, mesh)
      peak_flops, limit = self._machine.chip.peak_flops, self._machine.memory
      rows[name] = planning.row(measured, expected.get(name), peak_flops, limit)
    bar.close()
    return self._summary(config, outline, mesh, rows)

  def find_remedy(
    self, config: TrainConfig, plan: dict[str, Any]
  ) -> dict[str, Any] | None:
    """The cheapest change of a run that makes it fit, if there is one.

    Only the programs that did not fit are compiled again.

    Args:
      config: the run.
      plan: its plan.
    """
    large = [name for name, row in plan["programs"].items() if not row["fits"]]
    tried = []
    for remedy in remedies(config, len(self._devices)):
      try:
        again = self.plan(remedy.config, large)
      except ValueError:  # such as heads that do not divide
        continue
      tried.append(_tried(remedy, again))
      if again["fits"]:
        return {**tried[-1], "tried": tried}
    return {"flags": None, "tried": tried} if tried else None

  def find_best(
    self, config: TrainConfig, plan: dict[str, Any]
  ) -> dict[str, Any]:
    """The strategy that computes least and fits; see `strategies.find`.

    Args:
      config: the run.
      plan: of all its programs.
    """
    best = strategies.find(config, plan, self._devices, self.plan)
    peak_flops = self._machine.chip.peak_flops
    for one in [best, *best["tried"]]:
      if peak_flops and "flops" in one:
        one["lower_bound_seconds"] = one["flops"] / peak_flops
    return best

  def _open(self, config: TrainConfig) -> tuple[Mesh, Outline]:
    if config.mesh.slices != self._machine.slices:
      raise ValueError(
        f"config.mesh.slices is {config.mesh.slices}, but {self._machine.name} "
        f"has {self._machine.slices}; set it to {self._machine.slices}"
      )
    mesh = make_mesh(config.mesh, self._devices)
    return mesh, outline_run(config, mesh)

  def _measured(
    self, config: TrainConfig, name: str, outline: Outline, mesh: Mesh
  ) -> planning.Measured:
    """One program, from the cache if it is there, under whatever config."""
    asked = self._kept(
      [
        to_dict(config),
        name,
        jax.__version__,
        _digest(Path(dollar_jax.__file__).parent.rglob("*.py")),
        # a folder may hold another model by now
        str((outline.base.params, outline.base.codec)),
      ]
    )
    if self._cache and asked.exists():
      return planning.Measured(**read_json(asked))
    program = outline.task.programs(outline.batch)[name]
    traced = planning.trace(program, outline.task.resident(), mesh)
    counted = [Path(module.__file__) for module in (planning, hlo, flops)]
    made = self._kept([traced.digest, traced.waiting_bytes, _digest(counted)])
    if self._cache and made.exists():
      measured = planning.Measured(**read_json(made))
    else:
      try:
        measured = planning.measure(traced, mesh, self._machine.memory)
      except ValueError as error:
        machine = self._machine.name
        raise ValueError(f"program {name} on {machine}: {error}") from error
    made.parent.mkdir(parents=True, exist_ok=True)
    for file in (asked, made):
      write_json(file, dataclasses.asdict(measured))
    return measured

  def _kept(self, what: list[Any]) -> Path:
    """Where a program that is finished is kept, by what it was made of."""
    machine = self._machine
    what = [*what, machine.name, machine.memory, _compiler(machine)]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return user_cache("plans") / f"{digest[:32]}.json"

  def _summary(
    self,
    config: TrainConfig,
    outline: Outline,
    mesh: Mesh,
    rows: dict[str, dict[str, Any]],
  ) -> dict[str, Any]:
    largest = max(rows, key=lambda name: rows[name]["wanted_bytes"])
    return {
      "topology": self._machine.name,
      "devices": len(self._devices),
      "mesh": dict(mesh.shape),
      "attention": str(attention_choice(outline.base, mesh)),
      "teacher": config.teacher if config.task == "distill" else None,
      "latent_shape": list(outline.base.recipe.latent_shape),
      "batch_size": config.data.batch_size,
      "videos_a_device": config.data.batch_size / batch_shards(mesh),
      "limit_bytes": int(self._machine.memory) or None,
      "resident_bytes": planning.resident_bytes(outline.task.resident()),
      "host_bytes": host_memory(config, outline, mesh),
      "peak_bytes": rows[largest]["wanted_bytes"],
      "largest_program": largest,
      "fits": all(row["fits"] for row in rows.values()),
      "warnings": planning.warnings(config, outline, mesh, rows),
      "programs": rows,
      "update": planning.update_total(config, rows),
      "config": to_dict(config),
      "versions": {
        "dollar_jax": dollar_jax.__version__,
        "jax": jax.__version__,
        "compiler": _compiler(self._machine),
      },
    }


def _tried(remedy: Remedy, plan: dict[str, Any]) -> dict[str, Any]:
  return {
    "flags": list(remedy.flags),
    "costs": remedy.costs,
    "fits": plan["fits"],
    "peak_bytes": plan["peak_bytes"],
  }


def _why_not(plan: dict[str, Any]) -> str:
  """One sentence: by how much it does not fit, and what would."""
  gib = 2**30
  peak, limit = plan["peak_bytes"], plan["limit_bytes"]
  text = (
    f"the {plan['largest_program']} program needs {peak / gib:.2f} GiB a "
    f"device and {plan['topology']} gives {limit / gib:.2f}: "
    f"{(peak - limit) / gib:.2f} too much"
  )
  remedy = plan.get("remedy")
  if remedy is None:
    return text
  if remedy["flags"] is None:
    least = min(remedy["tried"], key=lambda one: one["peak_bytes"])
    return (
      f"{text}; nothing that was tried fits, the least being "
      f"{least['peak_bytes'] / gib:.2f} GiB with {' '.join(least['flags'])}: "
      "take more devices, a smaller clip, or config.lora_rank"
    )
  return (
    f"{text}; {' '.join(remedy['flags'])} fits, with "
    f"{remedy['peak_bytes'] / gib:.2f} GiB, and costs {remedy['costs']}"
  )


def _why_none(plan: dict[str, Any]) -> str:
  """One sentence: that no strategy fits, and what is left to change."""
  gib = 2**30
  tried = plan["best"]["tried"]
  least = min([one["peak_bytes"] for one in tried] + [plan["peak_bytes"]])
  return (
    f"no strategy fits {plan['topology']}, which gives "
    f"{plan['limit_bytes'] / gib:.2f} GiB a device; of {len(tried)} compiled "
    f"the least needs {least / gib:.2f}: take more devices, a smaller clip, or "
    "config.lora_rank, or plan without --best for what offloading would do"
  )


def _compiler(machine: Machine) -> str:
  """The package that compiles for a machine, and its version."""
  name = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin", "cpu": "jaxlib"}
  package = name[machine.chip.platform]
  return f"{package} {importlib.metadata.version(package)}"


def _digest(files: Iterable[Path]) -> str:
  """Tells apart code as it was when a plan was made."""
  digest = hashlib.sha256()
  for file in sorted(files):
    digest.update(os.fsencode(file.name))
    digest.update(file.read_bytes())
  return digest.hexdigest()
