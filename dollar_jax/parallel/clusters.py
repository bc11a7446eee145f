"""What a launcher tells a process about the run that it is one of.

JAX finds the other processes by itself; here is said whether there are any, and
what JAX cannot know.
"""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

# What each launcher sets, in the order in which JAX looks for them, and the
# count of processes.
_LAUNCHERS = {
  "OpenMPI": (("OMPI_COMM_WORLD_RANK",), "OMPI_COMM_WORLD_SIZE"),
  "SLURM": (
    ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "SLURM_NTASKS",
  ),
}
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_INDEXED_JOB = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")

_TOLD = re.compile(
  "SLURM_(JOB_ID|STEP_NODELIST|NTASKS|PROCID)|OMPI_COMM_WORLD_(SIZE|RANK)"
  "|TPU_(PROCESS_ADDRESSES|WORKER_HOSTNAMES|WORKER_ID)|JOB_COMPLETION_INDEX"
  "|MEGASCALE_(COORDINATOR_ADDRESS|NUM_SLICES|SLICE_ID)"
)


def find_cluster(environment: Mapping[str, str]) -> str | None:
  """Returns the cluster of more than one process that `environment` tells of.

  Args:
    environment: environment variables, such as `os.environ`.

  Returns:
    "OpenMPI", "SLURM", "TPU pod" (on GKE, too), "Kubernetes" (an indexed job,
    of which only the API server knows the size), or None.
  """
  for name, (variables, count) in _LAUNCHERS.items():
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
  if all(variable in environment for variable in _INDEXED_JOB):
    return "Kubernetes"
  return None


def describe(cluster: str, environment: Mapping[str, str]) -> str:
  """Names a cluster and what it told this process."""
  told = [f"{k}={environment[k]}" for k in environment if _TOLD.fullmatch(k)]
  return f"{cluster} ({', '.join(sorted(told)) or 'its metadata server'})"


def jax_arguments(
  cluster: str, environment: Mapping[str, str]
) -> dict[str, Any]:
  """What to tell `jax.distributed.initialize`, which finds out the rest.

  Raises:
    ConnectionError: if JAX needs a package here that is not installed.
  """
  arguments = {}
  # Of a launcher's process JAX takes for granted that it wants one GPU.
  nodes = environment.get("SLURM_STEP_NUM_NODES")
  one_a_node = {
    "OpenMPI": environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1",
    "SLURM": nodes is not None and nodes == environment.get("SLURM_NTASKS"),
  }
  chosen = "JAX_LOCAL_DEVICE_IDS" in environment
  if one_a_node.get(cluster) and not chosen:
    arguments["local_device_ids"] = []  # all
  # From version 5 on OpenMPI does not set what JAX looks for.
  if cluster == "OpenMPI" and "OMPI_MCA_orte_hnp_uri" not in environment:
    _need("mpi4py", "mpi4py", "OpenMPI 5")
    arguments["cluster_detection_method"] = "mpi4py"
  if cluster == "Kubernetes":
    _need("kubernetes", "jax[k8s]", "an indexed job of Kubernetes")
  return arguments


def _need(module: str, package: str, where: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise ConnectionError(
      f"could not start through {where}: JAX needs {module} there, which is "
      f"not installed; pip install '{package}', or give --coordinator, "
      "--num_processes and --process_id"
    )
