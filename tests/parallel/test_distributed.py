"""Processes find each other on loopback, or say clearly why not."""

import socket
import subprocess
import sys

import pytest

from dollar_jax.parallel import distributed

PROGRAM = """
import sys
from dollar_jax.parallel import distributed
from jax.experimental import multihost_utils
import jax, numpy as np
distributed.start(sys.argv[1], 2, int(sys.argv[2]), start_seconds=30)
mine = np.int32(jax.process_index() + 1)
print(multihost_utils.process_allgather(mine).sum())
distributed.shut_down()
"""

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[0-1]",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
}


def test_two_processes_add_up():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, str(index)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    for process in processes:
      out, err = process.communicate(timeout=60)
      assert process.returncode == 0, err[-2000:]
      # Gloo writes to standard output, too.
      assert out.split()[-1] == "3"
  finally:
    for process in processes:
      process.kill()


@pytest.mark.parametrize(
  ("environment", "cluster"),
  [
    ({}, None),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    (SLURM | {"SLURM_NTASKS": "2"}, "SLURM"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
    ({"TPU_ML_PLATFORM": "JAX"}, "TPU pod"),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
  ],
)
def test_cluster_is_found(environment, cluster):
  assert distributed.find_cluster(environment) == cluster


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
