"""What is compiled before a run is what the run calls."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from benchmarks.step_cost import make_tiny_task
from dollar_jax.parallel.compilation import compile_together, compiler_options
from dollar_jax.train import config as configs
from dollar_jax.train.loop import STEPS, batch_shapes

SETTINGS = configs.TrainConfig(
  task="distill",
  steps=3,
  scan=False,
  data=configs.DataConfig(batch_size=8),
  distill=configs.DistillConfig(
    num_steps=2, cd_warmup=1, score_steps=1, reward_weight=0.1
  ),
  reward=dataclasses.replace(
    configs.RewardConfig(), name="sharpness", every=10, warmup_labels=8
  ),
)


@pytest.fixture
def compiled(caplog):
  """Names of the functions that JAX has given to XLA so far."""

  def names():
    texts = [record.getMessage() for record in caplog.records]
    return [t.split()[1] for t in texts if t.startswith("Compiling ")]

  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    yield names


def test_a_run_calls_what_was_compiled_before_it(compiled):
  task, batches = make_tiny_task(SETTINGS)
  example = next(batches.from_the_first().iterator)
  example = {k: v[0] for k, v in example.items() if k != "prompt"}
  mesh = jax.tree.leaves(task.resident())[0].sharding.mesh
  programs = task.programs(batch_shapes(example, 8, mesh))
  steps = [programs[name] for name in STEPS if name in programs]
  assert len(steps) == 3
  compile_together((one.run, one.args) for one in steps)
  assert compiled().count("jit(step)") == 3
  state = task.init()
  for index in range(2):  # a warm-up, then every critic
    state, metrics = task.update(state, batches, index)
  assert {"score_loss", "consistency"} <= set(metrics)
  assert np.isfinite(float(metrics["score_loss"]))
  # the latent reward model's step is compiled when it is called
  assert compiled().count("jit(step)") == 4
  task.close()


def test_a_run_that_goes_on_needs_no_warm_up():
  task, _ = make_tiny_task(SETTINGS)
  shapes = {
    "latents": jax.ShapeDtypeStruct((1, 2, 2, 4), np.float32),
    "text": jax.ShapeDtypeStruct((2, 8), np.float32),
    "text_mask": jax.ShapeDtypeStruct((2,), bool),
  }
  mesh = jax.tree.leaves(task.resident())[0].sharding.mesh
  batch = batch_shapes(shapes, 8, mesh)
  assert "warm-up" in task.programs(batch)
  assert "warm-up" not in task.programs(batch, start=1)
  task.close()


def test_only_the_cpu_compiles_for_less(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  assert compiler_options("cpu") == {"xla_backend_optimization_level": 1}
  assert compiler_options("tpu") is None
  assert compiler_options("gpu") is None
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  assert compiler_options("cpu") is None
