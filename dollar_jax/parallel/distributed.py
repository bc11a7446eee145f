"""Start-up and shut-down of JAX's multi-controller runtime."""

import ipaddress
import os
from collections.abc import Mapping

import jax
from absl import logging

# What each cluster's launcher sets, and the count of processes if it tells.
_CLUSTERS = {
  "SLURM": (
    ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "SLURM_NTASKS",
  ),
  "OpenMPI": (("OMPI_MCA_orte_hnp_uri",), "OMPI_COMM_WORLD_SIZE"),
}
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  start_seconds: int = 300,
  heartbeat_seconds: int = 60,
) -> str | None:
  """Joins this process to the others of its run; alone, does nothing.

  Call it before anything touches a device.

  Args:
    coordinator: HOST:PORT where process 0 listens; None looks for a cluster.
    num_processes: processes of the run, at least 1.
    process_id: this process, from 0 to `num_processes` - 1.
    start_seconds: how long to wait for the other processes.
    heartbeat_seconds: silence after which a process counts as dead.

  Returns:
    What was joined, such as "SLURM", or None for a single process.

  Raises:
    ValueError: the three arguments are incomplete or out of range.
    ConnectionError: JAX refused to start. Where the other processes do not come
      in time, its runtime aborts the process (exit status 134) instead.
  """
  given = (coordinator, num_processes, process_id)
  arguments = {}
  if any(value is not None for value in given):
    _check(coordinator, num_processes, process_id)
    found = f"coordinator {coordinator}"
    arguments = {
      "coordinator_address": coordinator,
      "num_processes": num_processes,
      "process_id": process_id,
    }
    # JAX would listen on every interface.
    if _is_loopback(coordinator):
      arguments["coordinator_bind_address"] = coordinator
  else:
    found = find_cluster(os.environ)
  if found is None:
    return None
  # A warning, so that it stands above the abort of a failed start.
  logging.warning(
    "joining %s; waiting up to %d s for all processes", found, start_seconds
  )
  try:
    jax.distributed.initialize(
      initialization_timeout=start_seconds,
      heartbeat_timeout_seconds=heartbeat_seconds,
      **arguments,
    )
  except Exception as error:
    raise ConnectionError(
      f"could not start through {found} within {start_seconds} s: {error}"
    ) from error
  _set_up_logging()
  return found


def shut_down() -> None:
  """Leaves the run, once every process is done; alone, does nothing."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def find_cluster(environment: Mapping[str, str]) -> str | None:
  """Returns the cluster of more than one process that `environment` tells of.

  Args:
    environment: environment variables, such as `os.environ`.

  Returns:
    "SLURM", "OpenMPI", "TPU pod" or None.
  """
  for name, (variables, count) in _CLUSTERS.items():
    here = all(variable in environment for variable in variables)
    if here and int(environment.get(count, "1")) > 1:
      return name
  for variable in _TPU_HOSTS:
    if "," in environment.get(variable, ""):
      return "TPU pod"
  # JAX's import sets the first where it sees TPU chips; the second rules out
  # that a metadata server tells of other hosts.
  alone = "TPU_SKIP_MDS_QUERY" in environment
  if "TPU_ML_PLATFORM" in environment and not alone:
    return "TPU pod"
  return None


def _check(coordinator, num_processes, process_id):
  """Raises ValueError unless the three make a place in a run."""
  flags = {
    "--coordinator": coordinator,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  missing = [flag for flag, value in flags.items() if value is None]
  if missing:
    raise ValueError(
      f"{', '.join(missing)} missing: give --coordinator, --num_processes and"
      " --process_id together, or none of them"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise ValueError(
      f"--coordinator={coordinator} is not HOST:PORT with a port from 1 to"
      " 65535; write it like 10.0.0.1:8476"
    )
  if num_processes < 1:
    raise ValueError(
      f"--num_processes={num_processes} is below 1; give the count of all"
      " processes of the run"
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"--process_id={process_id} is not from 0 to {num_processes - 1}, the"
      f" limit that --num_processes={num_processes} sets; number the processes"
      " from 0"
    )


def _is_loopback(coordinator):
  host = coordinator.rpartition(":")[0].strip("[]")
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def _set_up_logging():
  """Process 0 tells what it does; the others only warnings and faults."""
  index = jax.process_index()
  handler = logging.get_absl_handler()
  formatter = logging.PythonFormatter()
  plain = formatter.format
  formatter.format = lambda record: f"[process {index}] {plain(record)}"
  handler.setFormatter(formatter)
  logging.set_verbosity(logging.INFO if index == 0 else logging.WARNING)
