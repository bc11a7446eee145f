"""Collectives of a compiled program, counted from its HLO text.

XLA prints what every device runs: which collectives, on arrays of which shape,
inside which loops. Bytes are those a device ends up with or gives away: the
result of an all-gather, an all-to-all, a permutation or an all-reduce, the
operand of a reduce-scatter.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)

_ANY_CHANNEL = "1"
"""The channel of collectives that XLA has merged, or that JAX wrote."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|[^ ]+) ([\w-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: one of `KINDS`.
    bytes: of one run, on a device.
    runs: how often it runs in one call of the program.
    group: devices that take part.
    gather: whether it is a gather, whatever XLA has made of it.
  """

  kind: str
  bytes: int
  runs: int
  group: int
  gather: bool = False


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str


def collectives(text: str) -> list[Collective]:
  """Finds the collectives in the text of a compiled program.

  A collective that XLA has spread over several fusions, which have one channel,
  counts once.

  Args:
    text: `compiled.as_text()`.

  Raises:
    ValueError: if a loop's number of trips cannot be told.
  """
  computations, entry = _parse(text)
  runs = _count_runs(computations, entry)
  fused = {
    called
    for instructions in computations.values()
    for instruction in instructions
    if instruction.opcode == "fusion"
    for called in _called(instruction)
  }
  found: dict[tuple, Collective] = {}
  for name, instructions in computations.items():
    times = runs.get(name, 0)
    if not times:
      continue
    known = {i.name: i for i in instructions}
    for instruction in instructions:
      one = _collective(instruction, known, name, times)
      if one is None:
        continue
      if one.kind == "all-reduce":
        summed = _fills_in(instruction, known, computations)
        one = dataclasses.replace(one, gather=summed)
      channel = re.search(r"channel_id=(\d+)", instruction.rest)
      key = (name, instruction.name)
      if name in fused and channel and channel[1] != _ANY_CHANNEL:
        key = (channel[1],)
      if key not in found or found[key].runs < one.runs:
        found[key] = one
  return list(found.values())


def total(found: list[Collective]) -> dict[str, dict[str, int]]:
  """Runs and bytes of a device, by kind, of what moves anything."""
  sums: dict[str, dict[str, int]] = {}
  for one in found:
    row = sums.setdefault(one.kind, {"count": 0, "bytes": 0})
    row["count"] += one.runs
    row["bytes"] += one.runs * one.bytes
  return {kind: sums[kind] for kind in KINDS if kind in sums}


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Instructions of every computation, and which one is the program."""
  computations: dict[str, list[_Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      # its end need not be looked for: some constants have lines like it
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(_Instruction(*match.groups()))
  return computations, entry


def _count_runs(
  computations: dict[str, list[_Instruction]], entry: str
) -> dict[str, int]:
  """How often each computation runs; of branches each counts."""
  runs = {entry: 1}
  waiting = [entry]
  while waiting:
    name = waiting.pop()
    for instruction in computations.get(name, ()):
      times = runs[name]
      if instruction.opcode == "while":
        times *= _trips(instruction, computations)
      for called in _called(instruction):
        if runs.get(called, 0) < times:
          runs[called] = times
          waiting.append(called)
  return runs


def _called(instruction: _Instruction) -> Iterator[str]:
  yield from _CALLED.findall(instruction.rest)
  for names in _BRANCHES.findall(instruction.rest):
    yield from (name.strip().lstrip("%") for name in names.split(","))


def _trips(
  loop: _Instruction, computations: dict[str, list[_Instruction]]
) -> int:
  """Trips of a loop: as XLA says, or what its condition compares with."""
  if known := re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.rest):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", loop.rest)[1]
  limits, waiting = [], [condition]
  while waiting:
    for instruction in computations.get(waiting.pop(), ()):
      waiting += _called(instruction)
      if instruction.opcode == "constant" and "[]" in instruction.shape:
        limits.append(instruction.rest.partition(")")[0])
  limits = [int(text) for text in limits if text.isdecimal()]
  if len(set(limits)) != 1:
    raise ValueError(
      f"the trips of loop {loop.name} cannot be told from its condition"
    )
  return limits[0]


def _collective(
  instruction: _Instruction,
  known: dict[str, _Instruction],
  computation: str,
  times: int,
) -> Collective | None:
  """The collective that an instruction is or starts."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  size = _bytes(instruction.shape)
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    # operands and results in one tuple
    given = sum(
      _bytes(known[name].shape)
      for name in _operands(instruction)
      if name in known
    )
    size = size - given if kind != "collective-permute" else given
  group = _group(instruction.rest)
  gather = kind == "all-gather"
  if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # as XLA writes it for TPUs
  elif kind == "reduce-scatter":
    size *= group
  return Collective(kind, size, times, group, gather)


def _operands(instruction: _Instruction) -> list[str]:
  return re.findall(r"%([\w.-]+)", instruction.rest.partition(")")[0])


def _fills_in(
  instruction: _Instruction,
  known: dict[str, _Instruction],
  computations: dict[str, list[_Instruction]],
) -> bool:
  """Whether a sum is of shares put into zeros: a gather, at twice the cost.

  Each device puts its share at a place of its own, which is no constant.
  """
  for name in _operands(instruction):
    operand, around = known.get(name), known
    while operand is not None and operand.opcode in ("bitcast", "copy"):
      operand = known.get(_operands(operand)[0])
    if operand is not None and operand.opcode == "fusion":
      called = computations.get(next(_called(operand), ""), [])
      around = {inner.name: inner for inner in called}
      operand = called[-1] if called else None  # the root
    if operand is None or operand.opcode != "dynamic-update-slice":
      continue
    places = [around.get(place) for place in _operands(operand)[2:]]
    if any(place is None or place.opcode != "constant" for place in places):
      return True
  return False


def _group(rest: str) -> int:
  """Devices in one group of a collective."""
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh[2]))
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(iota[2])
  if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return groups[1].count(",") + 1
  return 2 if "source_target_pairs" in rest else 1


def _bytes(shape: str) -> int:
  """Bytes of an array, or of all in a tuple, as HLO writes their shapes."""
  size = 0
  for kind, dims in _ARRAY.findall(shape):
    digits = re.search(r"\d+", "8" if kind == "pred" else kind)
    bits = int(digits[0]) if digits else 0  # a token is nothing
    size += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
  return size
