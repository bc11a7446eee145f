"""Start-up and shut-down of JAX's multi-controller runtime."""

import contextlib
import errno
import ipaddress
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from absl import logging

from dollar_jax.parallel import clusters, ending

# JAX aborts the process after its own deadline: ours comes first.
_LATER_SECONDS = 60

# How JAX and what carries its arrays complain of a process that is gone.
_LOST = re.compile(
  r"gloo|nccl|coordination service|heartbeat|unhealthy|socket closed"
  r"|broken pipe|connection (reset|refused|closed)",
  re.IGNORECASE,
)
_AGAIN = (
  "the run's last checkpoint is kept; start the same command again in every "
  "process"
)


@contextlib.contextmanager
def joined(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  start_seconds: int = 300,
) -> Iterator[str | None]:
  """Joins the other processes as `start` does, and leaves them at the end.

  A failure within ends this process without waiting for the others, who then
  learn that it is lost.

  Yields:
    What `start` returns.

  Raises:
    ValueError: as `start`.
    ConnectionError: as `start`, and if another process was lost.
  """
  try:
    yield start(
      coordinator, num_processes, process_id, start_seconds=start_seconds
    )
  except (Exception, KeyboardInterrupt) as error:
    if not jax.distributed.is_initialized():
      raise
    if isinstance(error, InterruptedError):  # all stop after the same step
      shut_down()
      raise
    if isinstance(error, ConnectionError) or not _LOST.search(str(error)):
      ending.leave_at_once(130 if isinstance(error, KeyboardInterrupt) else 1)
      raise
    ending.leave_at_once(os.EX_TEMPFAIL)
    time.sleep(1)  # so that what JAX's threads still print comes before
    why = str(error).strip().splitlines()[0]
    raise ConnectionError(f"{_who()} lost another: {why}; {_AGAIN}") from error
  shut_down()


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  start_seconds: int = 300,
  heartbeat_seconds: int = 60,
) -> str | None:
  """Joins this process to the others of its run; alone, does nothing.

  Call it before anything touches a device. Until `shut_down` the loss of
  another process ends this one by exit code 75 and a last line on stderr: at
  once if that was process 0, else within `heartbeat_seconds`.

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
    ConnectionError: the processes did not come together; it names what was
      tried. This process cannot try again, and its exit code will be 75. (What
      JAX's runtime does not refuse but abort, such as the same process twice,
      ends at once, by the same sentence and exit code.)
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    _check(coordinator, num_processes, process_id)
    found = f"coordinator {coordinator}"
    tried = f"{found} (process {process_id} of {num_processes})"
    arguments = {
      "coordinator_address": coordinator,
      "num_processes": num_processes,
      "process_id": process_id,
      "cluster_detection_method": "deactivate",
    }
    # JAX would listen on every interface.
    if _is_loopback(coordinator):
      arguments["coordinator_bind_address"] = coordinator
    if process_id == 0:
      _check_port(coordinator, tried)
  else:
    found = clusters.find_cluster(os.environ)
    if found is None:
      return None
    tried = clusters.describe(found, os.environ)
    arguments = clusters.jax_arguments(found, os.environ)
  # A warning, because until all have come it is not known who is process 0.
  logging.warning("joining %s; waits up to %d s", tried, start_seconds)
  _initialize(
    f"could not start through {tried} within {start_seconds} s",
    start_seconds,
    heartbeat_timeout_seconds=heartbeat_seconds,
    **arguments,
  )
  _last_line_of_abort(
    f"{_who()} lost another, or JAX's runtime failed, as the lines above tell; "
    f"{_AGAIN}"
  )
  _set_up_logging()
  return found


def shut_down() -> None:
  """Leaves the run, once every process is done; alone, does nothing."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
    ending.plain_abort()


def _check_port(coordinator: str, tried: str) -> None:
  """Raises ConnectionError if the port is not free, where JAX would crash."""
  host, _, port = coordinator.rpartition(":")
  address = host.strip("[]") if _is_loopback(coordinator) else ""
  try:
    socket.create_server((address, int(port))).close()
  except OSError as error:
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
      return  # such as a host without IPv4
    raise ConnectionError(
      f"could not start through {tried}: process 0 cannot listen there "
      f"({os.strerror(error.errno)}); give every process a --coordinator with "
      "a free port"
    ) from error


def _initialize(failure: str, seconds: int, **arguments) -> None:
  """Starts JAX's runtime.

  Raises:
    ConnectionError: with `failure` and the reason.
  """
  refusal: list[Exception] = []

  def initialize() -> None:
    try:
      jax.distributed.initialize(
        initialization_timeout=seconds + _LATER_SECONDS, **arguments
      )
    except Exception as error:
      refusal.append(error)

  _last_line_of_abort(f"{failure}: JAX's runtime failed, see the lines above")
  thread = threading.Thread(target=initialize, daemon=True)
  thread.start()
  try:
    thread.join(seconds)
  except KeyboardInterrupt:
    ending.leave_at_once(130)
    raise
  if thread.is_alive() or refusal:
    ending.leave_at_once(os.EX_TEMPFAIL)
    why = refusal[0] if refusal else _who_is_missing(arguments)
    raise ConnectionError(f"{failure}: {why}")


def _who_is_missing(arguments) -> str:
  address = arguments.get("coordinator_address")
  if address is None:
    return "not all processes came, or process 0 cannot be reached"
  if arguments["process_id"]:
    host, _, port = address.rpartition(":")
    try:
      socket.create_connection((host.strip("[]"), int(port)), 5).close()
    except OSError as error:
      return f"process 0 cannot be reached there ({error})"
  return "not all processes came"


def _last_line_of_abort(text: str) -> None:
  ending.on_abort(f"{sys.argv[0]}: error: {text}")


def _who() -> str:
  return f"process {jax.process_index()} of {jax.process_count()}"


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
