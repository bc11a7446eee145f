"""A plan as text: a Markdown table that fits into a terminal."""

from typing import Any

GIB = 2**30

COLUMNS = (
  "program",
  "peak GiB",
  "activations GiB",
  "TFLOP",
  "of ideal",
  "stated",
  "sent GiB",
  "of hand count",
  "bound s",
)


BEST_COLUMNS = (
  "tried",
  "TFLOP",
  "of today's",
  "bound s",
  "sent GiB, by hand",
  "predicted GiB",
  "peak GiB",
  "fits",
)


def plan_table(plan: dict[str, Any]) -> str:
  """Renders a plan.

  Args:
    plan: see `programs.plan`.
  """
  mesh = ", ".join(f"{k} {v}" for k, v in plan["mesh"].items())
  limit = plan["limit_bytes"]
  room = f"{limit / GIB:.2f} GiB each" if limit else "memory not known"
  resident = plan["resident_bytes"]
  stays = ", ".join(f"{k} {v / GIB:.2f}" for k, v in resident.items())
  lines = [
    f"{plan['topology']}: {plan['devices']} devices ({mesh}), {room}",
    f"attention by {plan['attention']}",
    f"batch {plan['batch_size']}, {plan['videos_a_device']:g} a group, of "
    + "x".join(map(str, plan["latent_shape"])),
    f"stays on a device, GiB: {stays}",
    _host(plan["host_bytes"]),
    "",
    f"| {' | '.join(COLUMNS)} |",
    "|---" * len(COLUMNS) + "|",
  ]
  lines += [_row(name, one) for name, one in plan["programs"].items()]
  update = plan["update"]
  if update["lower_bound_seconds"]:
    runs = ", ".join(f"{k} x {v:g}" for k, v in update["runs"].items())
    lines += [
      "",
      f"an update ({runs}): {update['flops'] / 1e12:,.1f} TFLOP a device",
      "lower bound of its time, at the chip's peak: {:,.2f} s".format(
        update["lower_bound_seconds"]
      ),
    ]
  lines += [f"warning: {text}" for text in plan["warnings"]]
  if limit and plan["fits"]:
    share = plan["peak_bytes"] / limit
    lines.append(
      f"fits: {plan['peak_bytes'] / GIB:.2f} of {limit / GIB:.2f} GiB "
      f"({share:.0%}), most in {plan['largest_program']}"
    )
  return "\n".join(lines)


def best_table(plan: dict[str, Any]) -> str:
  """Renders the strategies that were tried, and the flags of the best.

  Args:
    plan: see `programs.plan`.
  """
  best = plan["best"]
  lines = [
    "",
    f"| {' | '.join(BEST_COLUMNS)} |",
    "|---" * len(BEST_COLUMNS) + "|",
    *map(_tried, best["tried"]),
    "",
  ]
  if best["flags"]:
    lines.append(f"best: {' '.join(best['flags'])}")
  elif best["flags"] is not None:
    lines.append("best: the config as it is")
  return "\n".join(lines)


def _tried(one: dict[str, Any]) -> str:
  cells = [
    " ".join(one["flags"]) or "as it is",
    f"{one['flops'] / 1e12:,.2f}",
    _number(one["of_today"]),
    _number(one.get("lower_bound_seconds")),
    _gib(one["sent_bytes"]),
    _gib(one["predicted_bytes"]),
    _gib(one["peak_bytes"]),
    "yes" if one["fits"] else "no",
  ]
  return f"| {' | '.join(cells)} |"


def _host(host: dict[str, int]) -> str:
  """What a process keeps in its host's memory."""
  return (
    f"a process, of {host['processes']}, keeps on its host, GiB: frozen "
    f"{_gib(host['frozen'])}, data {_gib(host['data'])} ({host['rows']} rows a "
    f"batch, {host['batches']} batches ahead), checkpoint "
    f"{_gib(host['checkpoint'])}, result {_gib(host['result'])}; "
    f"{_gib(host['peak'])} at most"
  )


def _row(name: str, one: dict[str, Any]) -> str:
  peak = one["peak_bytes"]
  cells = [
    name,
    _gib(peak) if peak is not None else f"over: {_gib(one['wanted_bytes'])}",
    _gib(one["temporary_bytes"]),
    f"{one['flops'] / 1e12:,.2f}",
    _number(one["flops_ratio"]),
    _number(one["stated_factor"] if one["flops_ratio"] else None),
    _gib(one["collective_bytes"] if peak is not None else None),
    _number(one["collective_ratio"] if peak is not None else None),
    _number(one["lower_bound_seconds"]),
  ]
  return f"| {' | '.join(cells)} |"


def _gib(size: int | None) -> str:
  return "-" if size is None else f"{size / GIB:,.2f}"


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:,.3f}"
