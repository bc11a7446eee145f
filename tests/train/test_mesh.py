"""A run split over devices equals the run on one device."""

import pathlib

import numpy as np
import pytest
import safetensors.numpy

from dollar_jax.train import metrics

EIGHT_DEVICES = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 8)
from dollar_jax import cli

count = int(sys.argv[1])
size = (len(sys.argv) - 2) // count
for i in range(count):
  command = sys.argv[2 + i * size : 2 + (i + 1) * size]
  assert cli.main(command) == 0, command
assert jax.device_count() == 8
"""

MESHES = {
  "teacher": {"mesh.fsdp": 4, "mesh.context": 2},
  "lora": {"mesh.fsdp": 2, "mesh.context": 4},
  "pixels": {"mesh.fsdp": 2, "mesh.context": 4},
}


@pytest.fixture(scope="module")
def split(runs):
  """The runs of `MESHES`, each in a folder of its own."""
  folders = {kind: runs.fresh() for kind in MESHES}
  commands = [
    runs.command(kind, folders[kind], **mesh) for kind, mesh in MESHES.items()
  ]
  flat = [part for command in commands for part in command]
  process = runs.start(EIGHT_DEVICES, str(len(commands)), *flat)
  _, err = process.communicate()
  assert process.returncode == 0, err
  return folders


def test_attention_that_cannot_be_done_is_refused(runs, refusal):
  bad = runs.command("teacher", runs.fresh(), attention="splash")
  assert refusal(bad).startswith("attention is 'splash'")
  bad = runs.command("teacher", runs.fresh(), context="rings")
  assert refusal(bad) == (
    "context is 'rings'; use one of ['auto', 'ulysses', 'ring']"
  )


def test_a_mesh_that_does_not_fit_is_refused(runs, refusal):
  bad = runs.command("teacher", runs.fresh(), mesh__fsdp=3)
  assert refusal(bad) == (
    "config.mesh.fsdp is 3, which does not divide 1 devices; use 1"
  )


@pytest.mark.parametrize("kind", MESHES)
def test_a_split_run_is_the_run_of_one_device(kind, split, runs):
  whole = runs.whole(kind)
  rows = zip(*map(metrics.read, (split[kind], whole)), strict=True)
  for mine, other in rows:
    assert mine.keys() == other.keys()
    for name, value in mine.items():
      assert value == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
  file = pathlib.Path("model/transformer/diffusion_pytorch_model.safetensors")
  mine, other = (
    safetensors.numpy.load_file(w / file) for w in (split[kind], whole)
  )
  assert mine.keys() == other.keys()
  for name, array in mine.items():
    np.testing.assert_allclose(array, other[name], atol=1e-5, err_msg=name)
