"""Machines by name, and their devices for compiling without having them.

A name is a chip and how many of them lie along each dimension, as "v5e:16x16";
"2*v5e:16x16" is two slices that a slow network connects. Of GPUs the name
counts hosts and GPUs a host: "h100:8x8". XLA compiles for a TPU or a GPU that
is not there as long as its compiler is installed.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    platform: "tpu", "cuda" or "cpu".
    memory: bytes that a program can have on one device.
    peak_flops: bfloat16 FLOP/s of one device, dense; 0 is not known.
    devices: devices a chip.
    sizes: arrangements that XLA knows; empty for any.
  """

  platform: str
  memory: float
  peak_flops: float
  devices: int = 1
  sizes: tuple[str, ...] = ()


_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  "2x2x1",
  "2x2x2",
  "2x2x4",
  "2x4x4",
  "4x4x4",
  "4x4x8",
  "4x8x8",
  "8x8x8",
  "8x8x16",
)

CHIPS = {
  "v5e": Chip("tpu", 15.75 * GIB, 197e12, sizes=_SQUARES),
  "v5p": Chip("tpu", 95.73 * GIB, 459e12, sizes=_CUBES),
  "v6e": Chip("tpu", 31.24 * GIB, 918e12, sizes=_SQUARES),
  "tpu7x": Chip(
    "tpu", 94.74 * GIB, 1153.5e12, devices=2, sizes=("2x2x1", "2x2x2", "4x4x4")
  ),
  "h100": Chip("cuda", 79.6 * GIB, 989e12),
  "h200": Chip("cuda", 140.4 * GIB, 989e12),
  "cpu": Chip("cpu", 0.0, 0.0),
}
"""Chips by name. TPU memory is what XLA's compiler gives a program, GPU memory
what the driver reports, of which JAX takes a share that
XLA_PYTHON_CLIENT_MEM_FRACTION sets; peaks are the makers' figures."""

EXAMPLES = "v5e:16x16, v5p:4x4x4, 2*v6e:8x8, tpu7x:4x4x4, h100:8x8, cpu:8"


@dataclasses.dataclass(frozen=True)
class Machine:
  """A number of chips and how they are connected.

  Attributes:
    name: as it was written.
    kind: a key of `CHIPS`.
    sizes: chips along each dimension of a slice; of GPUs hosts, GPUs a host.
    slices: slices of that size.
  """

  name: str
  kind: str
  sizes: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """What it is made of."""
    return CHIPS[self.kind]

  @property
  def devices(self) -> int:
    """Devices in all."""
    return math.prod(self.sizes) * self.slices * self.chip.devices

  @property
  def memory(self) -> float:
    """Bytes that a program can have on one device; 0 is not known.

    JAX takes three quarters of a GPU's memory, unless told otherwise.
    """
    if self.chip.platform != "cuda":
      return self.chip.memory
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    return self.chip.memory * float(share)


def parse(name: str) -> Machine:
  """The machine of a name such as "v5e:16x16" or "2*v5e:16x16".

  Raises:
    ValueError: if there is none of that name; it lists those known.
  """
  match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name)
  if match is None or match[2] not in CHIPS:
    raise ValueError(
      f"topology {name!r} is not known; chips are {', '.join(CHIPS)}, written "
      f"like {EXAMPLES}"
    )
  slices, kind, arrangement = int(match[1] or 1), match[2], match[3]
  sizes = tuple(int(size) for size in arrangement.split("x"))
  chip = CHIPS[kind]
  if chip.sizes and arrangement not in chip.sizes:
    raise ValueError(
      f"topology {name!r} is not known; {kind} comes as {', '.join(chip.sizes)}"
    )
  most = {"tpu": 3, "cuda": 2, "cpu": 1}[chip.platform]
  if len(sizes) > most or math.prod(sizes) * slices < 1:
    raise ValueError(
      f"topology {name!r} is not known; {kind} is written like {EXAMPLES}"
    )
  if slices > 1 and chip.platform != "tpu":
    raise ValueError(
      f"topology {name!r} has slices, which only TPUs come in; write "
      f"{kind}:{arrangement}"
    )
  return Machine(name, kind, sizes, slices)


def open_devices(machine: Machine) -> list[jax.Device]:
  """Devices to compile for, of a machine that need not be here.

  "cpu:N" are this host's own, which JAX splits when it starts.

  Raises:
    ModuleNotFoundError: if the compiler for that platform is not installed.
    ValueError: if JAX has started already with fewer.
  """
  platform = machine.chip.platform
  if platform == "cpu":
    return _cpu_devices(machine)
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")
  if platform == "tpu":
    _need("libtpu", machine)
    # no TPU is asked for, so nothing need look for one, or speak of it
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"num_slices": machine.slices} if machine.slices > 1 else {}
    size = "x".join(map(str, machine.sizes))
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{machine.kind}:{size}", **options
    )
    return list(found.devices)
  _need("jax_cuda12_plugin", machine)
  hosts, gpus = (
    machine.sizes if len(machine.sizes) == 2 else (1, *machine.sizes)
  )
  found = topologies.get_topology_desc(
    platform="cuda",
    topology_name=machine.kind,
    target_config=_gpu_target(machine),
    topology=f"1x{hosts}x{gpus}",
  )
  return list(found.devices)


def _cpu_devices(machine: Machine) -> list[jax.Device]:
  try:
    jax.config.update("jax_num_cpu_devices", machine.devices)
    jax.config.update("jax_platforms", "cpu")
  except RuntimeError:  # it has started
    pass
  found = jax.devices("cpu")
  if len(found) < machine.devices:
    raise ValueError(
      f"{machine.name} has {machine.devices} devices, but JAX has started with "
      f"{len(found)}; plan it in a process of its own"
    )
  return found[: machine.devices]


def _gpu_target(machine: Machine) -> str:
  """What XLA wants to know of a GPU that is not here: an H100 or H200."""
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      shared_memory_per_block: 49152
      shared_memory_per_core: 233472
      threads_per_core_limit: 2048
      core_count: 132
      fpus_per_core: 128
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      memory_bandwidth: {3352 if machine.kind == "h100" else 4800}000000000
      l2_cache_size: 52428800
      clock_rate_ghz: 1.98
      device_memory_size: {int(machine.chip.memory)}
      shared_memory_per_block_optin: 232448
      cuda_compute_capability {{ major: 9 }}
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
    device_description_str: "{machine.kind.upper()}"
  """


def _need(module: str, machine: Machine) -> None:
  """Checks that a compiler is installed, as importing it would."""
  if importlib.util.find_spec(module) is None:
    raise ModuleNotFoundError(
      f"No module named {module!r}, which compiles for {machine.name}",
      name=module,
    )
