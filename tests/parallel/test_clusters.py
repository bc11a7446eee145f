"""A launcher's variables tell whether there are other processes."""

import importlib.util

import pytest

from dollar_jax.parallel import clusters

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[0-1]",
  "SLURM_STEP_NUM_NODES": "2",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
}
OPENMPI = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "0",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911",
}
OPENMPI_5 = {k: v for k, v in OPENMPI.items() if "orte" not in k}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
  ("environment", "cluster"),
  [
    ({}, None),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    (SLURM, "SLURM"),
    # inside sbatch, but not started by srun
    ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),
    (OPENMPI, "OpenMPI"),
    (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    (OPENMPI_5, "OpenMPI"),
    (SLURM | OPENMPI, "OpenMPI"),  # mpirun within a job
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
    (POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),  # GKE
    ({"TPU_ML_PLATFORM": "JAX"}, "TPU pod"),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
    (POD, None),
    (POD | {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
  ],
)
def test_cluster_is_found(environment, cluster):
  assert clusters.find_cluster(environment) == cluster


def test_what_was_tried_is_named():
  said = clusters.describe("SLURM", SLURM | {"HOME": "/root"})
  assert said == (
    "SLURM (SLURM_JOB_ID=7, SLURM_NTASKS=2, SLURM_PROCID=0, "
    "SLURM_STEP_NODELIST=n[0-1])"
  )


@pytest.mark.parametrize(
  ("cluster", "environment", "arguments"),
  [
    # one process a node has all of its devices, one of several has its own
    ("SLURM", SLURM, {"local_device_ids": []}),
    ("SLURM", SLURM | {"SLURM_NTASKS": "16"}, {}),
    ("SLURM", SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, {}),
    ("OpenMPI", OPENMPI, {}),
    (
      "OpenMPI",
      OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
      {"local_device_ids": []},
    ),
    ("TPU pod", SLURM, {}),
  ],
)
def test_one_process_a_node_sees_all_devices(cluster, environment, arguments):
  assert clusters.jax_arguments(cluster, environment) == arguments


@pytest.mark.parametrize(
  ("cluster", "environment", "package"),
  [
    ("OpenMPI", OPENMPI_5, "mpi4py"),
    ("Kubernetes", POD | {"JOB_COMPLETION_INDEX": "0"}, r"jax\[k8s\]"),
  ],
)
def test_packages_that_jax_needs(monkeypatch, cluster, environment, package):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConnectionError, match=f"pip install '{package}'"):
    clusters.jax_arguments(cluster, environment)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  found = clusters.jax_arguments(cluster, environment)
  method = {"OpenMPI": {"cluster_detection_method": "mpi4py"}}
  assert found == method.get(cluster, {})
