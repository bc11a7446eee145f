"""Processes find each other on loopback, or say clearly what went wrong."""

import socket

import pytest

from dollar_jax.parallel import distributed
from tests.forked import Program

ADD_UP = """
import sys
from dollar_jax.parallel import distributed
from jax.experimental import multihost_utils
import jax, numpy as np
distributed.start(sys.argv[1], 2, int(sys.argv[2]), start_seconds=30)
mine = np.int32(jax.process_index() + 1)
print(multihost_utils.process_allgather(mine).sum())
distributed.shut_down()
"""

ALONE = """
import sys
from dollar_jax.parallel import distributed
try:
  distributed.start(sys.argv[1], 2, int(sys.argv[2]), start_seconds=1)
except ConnectionError as error:
  print(error)
"""

# Its processes say "joined", then do what the third argument says.
TOGETHER = """
import sys, threading
from dollar_jax.parallel import distributed
from jax.experimental import multihost_utils
import numpy as np
sys.argv[0], start = "dollar train", distributed.start
distributed.start = lambda *a, **k: start(*a, **k, heartbeat_seconds=4)
try:
  with distributed.joined(sys.argv[1], 2, int(sys.argv[2]), 30):
    multihost_utils.process_allgather(np.int32(1))
    print("joined", flush=True)
    if sys.argv[3] == "apart":
      threading.Event().wait()
    while True:
      multihost_utils.process_allgather(np.int32(1))
      if sys.argv[3] == "own fault" and sys.argv[2] == "1":
        raise ValueError("a fault of its own")
except (ValueError, OSError) as error:
  print(f"dollar train: error: {error}", file=sys.stderr)
  sys.exit(1)
"""


@pytest.fixture
def start(tmp_path):
  """Starts a program as processes of one run; ends them with the test."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  processes = []

  def start(program, index, *args):
    folder = tmp_path / str(len(processes))
    folder.mkdir()
    processes.append(Program(folder, program, address, str(index), *args))
    return processes[-1]

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def wait_until_joined(process):
  # Gloo writes to standard output, too.
  while "joined" not in (line := process.stdout.readline()):
    assert line, process.stderr.read()


def test_two_processes_add_up(start):
  for process in [start(ADD_UP, index) for index in range(2)]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-2000:]
    assert out.split()[-1] == "3"


@pytest.mark.parametrize(
  ("index", "reason"),
  [(0, "not all processes came"), (1, "process 0 cannot be reached there")],
)
def test_a_process_that_stays_alone_says_what_it_tried(start, index, reason):
  process = start(ALONE, index)
  out, err = process.communicate(timeout=60)
  # one that gave up cannot go on as if nothing was
  assert process.returncode == 75
  assert out.count("\n") == 1
  assert "could not start through coordinator 127.0.0.1:" in out
  assert f"(process {index} of 2) within 1 s: {reason}" in out
  assert "Check failure" not in err


def test_a_port_that_is_taken_is_one_sentence():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ConnectionError) as refused:
      distributed.start(address, 2, 0, start_seconds=1)
  assert str(refused.value) == (
    f"could not start through coordinator {address} (process 0 of 2): process "
    "0 cannot listen there (Address already in use); give every process a "
    "--coordinator with a free port"
  )


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("together", ["together", "apart"])
def test_a_process_that_lost_another_says_so_and_ends(start, victim, together):
  processes = [start(TOGETHER, index, together) for index in range(2)]
  for process in processes:
    wait_until_joined(process)
  processes[victim].kill()
  survivor = processes[1 - victim]
  _, err = survivor.communicate(timeout=30)
  last = err.splitlines()[-1]
  assert survivor.returncode == 75, err
  assert last.startswith(f"dollar train: error: process {1 - victim} of 2 lost")
  assert last.endswith("start the same command again in every process")


def test_a_process_that_fails_does_not_wait_for_the_other(start):
  processes = [start(TOGETHER, index, "own fault") for index in range(2)]
  errors = [process.communicate(timeout=30)[1] for process in processes]
  last = [err.splitlines()[-1] for err in errors]
  assert [process.returncode for process in processes] == [75, 1]
  assert last[0].startswith("dollar train: error: process 0 of 2 lost another")
  assert last[1] == "dollar train: error: a fault of its own"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("127.0.0.1:1", None, 0), "--num_processes missing"),
    (("127.0.0.1", 2, 0), "is not HOST:PORT"),
    (("127.0.0.1:99999", 2, 0), "is not HOST:PORT"),
    (("127.0.0.1:1", 0, 0), "is below 1"),
    (("127.0.0.1:1", 2, 2), "not from 0 to 1"),
  ],
)
def test_bad_flags_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.start(*arguments)
