"""Attention on a mesh of eight devices against attention on one.

The devices need a process of their own (see tests/conftest.py): this file, run
as a program, which writes what each case got.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dollar_jax.models.attention import attention
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
AXES = ("data", "fsdp", "tensor", "context")
MESHES = [
  (4, 2, 1, 1),  # the batch of 4 divides among data alone
  (2, 2, 2, 1),
  (1, 1, 8, 1),
  (1, 1, 1, 8),  # of 13 tokens the last device has none
  (2, 1, 1, 4),
  (1, 2, 1, 4),
  (1, 1, 4, 2),
  (2, 2, 1, 2),
  (1, 2, 2, 2),
]
BATCH, HEADS, TEXT = 4, 8, 3
LENGTHS = {"even": 16, "odd": 13}
RULES = [
  ("batch", ("data", "fsdp")),
  ("tokens", "context"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", "fsdp"),
]
WAN = tiny.wan(dataclasses.replace(tiny.WAN, num_attention_heads=4))
COGVIDEOX = tiny.cogvideox()
NETWORKS = [  # denoiser, mesh, how tokens meet, latents (T, H, W)
  ("wan", WAN, (2, 1, 2, 2), "ulysses", (3, 6, 2)),  # 9 tokens
  ("wan", WAN, (1, 2, 1, 4), "ring", (3, 2, 10)),  # 15 tokens
  ("wan", WAN, (1, 1, 2, 4), "auto", (2, 4, 4)),  # 2 heads a device, so ring
  ("cogvideox", COGVIDEOX, (2, 2, 1, 2), "ulysses", (2, 4, 6)),  # 5 + 12
  ("cogvideox", COGVIDEOX, (2, 1, 1, 4), "ring", (2, 4, 4)),  # 5 + 8
]
EXCHANGES = {
  "local": (),
  "ulysses": ("all_to_all",),
  "ring": ("ppermute",),
  "auto": ("ppermute",),
}


def attention_cases():
  """Name, mesh and how tokens meet."""
  return [
    (f"{way}-{'x'.join(map(str, shape))}", shape, way)
    for shape in MESHES
    for way in (("ulysses", "ring") if shape[-1] > 1 else ("local",))
  ]


def network_cases():
  """Name, denoiser, mesh, how tokens meet and size of the latents."""
  return [
    (f"{name}-{way}-{'x'.join(map(str, shape))}", denoiser, shape, way, size)
    for name, denoiser, shape, way, size in NETWORKS
  ]


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def attend_all(**options):
  """Values and gradients of self- and cross-attention, for every length."""

  def run():
    found = {}
    for name, length in LENGTHS.items():
      for kind, keys in (("self", length), ("cross", TEXT)):
        attend = functools.partial(attention, cross=kind == "cross", **options)
        lengths = length, keys, keys, length
        *inputs, grad = draw(*[(BATCH, n, HEADS, 6) for n in lengths])
        out, pull = jax.vjp(attend, *inputs)
        found[f"{name}-{kind}"] = (out, *pull(grad))
    return found

  return run


def run_network(denoiser, size):
  """A network's output and the gradients of all that goes in."""
  c = denoiser.config
  x, text, grad = draw(
    (BATCH, *size, c.in_channels),
    (BATCH, tiny.WORDS, c.text_dim),
    (BATCH, *size, c.out_channels),
  )
  t = jnp.array([0.1, 0.4, 0.7, 0.9])

  def run(params):
    def raw(params, x, text):
      return denoiser.raw(params, x, t, text)

    out, pull = jax.vjp(raw, params, x, text)
    return {"out": (out,), "gradients": jax.tree.leaves(pull(grad))}

  return run


def shard(params, denoiser, mesh):
  """Parameters where their logical axes say."""
  inputs = denoiser.config.smallest_inputs.values()
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  boxed = jax.eval_shape(denoiser.module.init, jax.random.key(0), *inputs)
  specs = nn.get_partition_spec(boxed["params"])
  return jax.device_put(params, nn.logical_to_mesh_sharding(specs, mesh, RULES))


def make_mesh(shape):
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(shape))


def compare(ours, theirs):
  """The furthest that each group of arrays is from the same of another run.

  In units of the largest number of an array.
  """

  def distance(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())

  return {k: max(map(distance, ours[k], theirs[k])) for k in theirs}


def main(file):
  """Runs every case on eight devices and writes what came of it."""
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_disable_most_optimizations", True)
  report = {}
  alone = jax.device_get(jax.jit(attend_all())())
  for name, shape, way in attention_cases():
    with jax.set_mesh(make_mesh(shape)):
      method = "auto" if way == "local" else way
      traced = jax.jit(attend_all(context=method)).trace()
      found = jax.device_get(traced.lower().compile()())
    report[name] = compare(found, alone), str(traced.jaxpr)
  for name, denoiser, shape, way, size in network_cases():
    params = tiny.random_params(denoiser, scale=0.3)
    alone = jax.device_get(jax.jit(run_network(denoiser, size))(params))
    mesh = make_mesh(shape)
    spread = denoiser.with_config(context=way)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
      run = jax.jit(run_network(spread, size))
      traced = run.trace(shard(params, denoiser, mesh))
      found = jax.device_get(
        traced.lower().compile()(shard(params, denoiser, mesh))
      )
    report[name] = compare(found, alone), str(traced.jaxpr)
  for name, (distances, jaxpr) in report.items():
    exchanges = [x for x in ("all_to_all", "ppermute") if x in jaxpr]
    report[name] = {"distances": distances, "exchanges": exchanges}
  pathlib.Path(file).write_text(json.dumps(report))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  """What `main` wrote."""
  file = tmp_path_factory.mktemp("context") / "report.json"
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  subprocess.run([sys.executable, __file__, file], env=env, check=True)
  return json.loads(file.read_text())


@pytest.mark.parametrize("name, way", [c[::2] for c in attention_cases()])
def test_a_mesh_attends_as_one_device_does(report, name, way):
  found = report[name]
  assert found["exchanges"] == list(EXCHANGES[way])
  assert len(found["distances"]) == 2 * len(LENGTHS)
  for case, distance in found["distances"].items():
    assert distance <= 1e-5, case


@pytest.mark.parametrize("name, way", [c[::3] for c in network_cases()])
def test_a_mesh_runs_networks_as_one_device_does(report, name, way):
  found = report[name]
  assert found["exchanges"] == list(EXCHANGES[way])
  for case, distance in found["distances"].items():
    assert distance <= 1e-5, case


if __name__ == "__main__":
  main(sys.argv[1])
