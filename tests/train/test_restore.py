"""A checkpoint goes to another mesh, and no step is compiled twice on one."""

import json
import shutil

import pytest

from dollar_jax.train import metrics

STEPS = 12
EARLY = STEPS - 4
"""The oldest checkpoint that a run keeps."""

EIGHT_DEVICES = """
import json
import sys
import jax

jax.config.update("jax_num_cpu_devices", 8)
from dollar_jax import cli
from dollar_jax.train.teacher_task import TeacherTask

EVENTS = (
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/backend_compile_duration",
)
seen, counts = [], []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: seen.append(event) if event in EVENTS else None
)
update = TeacherTask.update


def watched(self, state, batches, index):
  before = len(seen)
  state, metrics = update(self, state, batches, index)
  counts.append(len(seen) - before)
  return jax.block_until_ready(state), metrics


TeacherTask.update = watched
assert cli.main(sys.argv[1:]) == 0
assert jax.device_count() == 8
print(json.dumps(counts))
"""

SIZES = {"data.batch_size": 8, "model.num_attention_heads": 2}
MESHES = {"mesh.data": 8}, {"mesh.fsdp": 4, "mesh.tensor": 2}


def train(runs, workdir, mesh):
  """Runs to the end; returns how much was traced or compiled in each update."""
  command = runs.command("teacher", workdir, **SIZES, **mesh)
  process = runs.start(EIGHT_DEVICES, *command)
  out, err = process.communicate()
  assert process.returncode == 0, err
  return json.loads(out.splitlines()[-1])


@pytest.mark.slow  # two programs on eight devices
def test_another_mesh_goes_on_and_no_step_is_compiled_twice(runs):
  whole, moved = runs.fresh(), runs.fresh()
  compiled = train(runs, whole, MESHES[0])
  assert len(compiled) == STEPS
  assert compiled[0] > 0
  assert not any(compiled[1:]), compiled

  shutil.copytree(whole, moved, dirs_exist_ok=True)
  shutil.rmtree(moved / "model")
  for step in (STEPS - 2, STEPS):
    shutil.rmtree(moved / "checkpoints" / str(step))
  compiled = train(runs, moved, MESHES[1])
  assert len(compiled) == STEPS - EARLY
  assert compiled[0] > 0
  assert not any(compiled[1:]), compiled

  rows = list(zip(*map(metrics.read, (moved, whole)), strict=True))
  assert len(rows) == STEPS
  assert rows[EARLY - 1][0] == rows[EARLY - 1][1]
  assert rows[EARLY][0] != rows[EARLY][1], "another mesh rounds another way"
  for mine, other in rows:
    for name, value in mine.items():
      assert value == pytest.approx(other[name], rel=1e-5, abs=1e-7), name
