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

from dollar_jax.models import attention as attentions
from dollar_jax.models.attention import attention
from dollar_jax.parallel import context
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
AXES = ("data", "fsdp", "tensor", "context")
MESHES = [
  (4, 2, 1, 1),  # the batch of 4 divides among data alone
  (2, 2, 2, 1),
  (1, 1, 1, 8),  # of 13 tokens the last device has none
  (2, 1, 1, 4),
  (1, 1, 4, 2),
  (2, 2, 1, 2),
  (1, 2, 2, 2),
]
BATCH, HEADS, TEXT = 4, 8, 3
EVEN, ODD = 16, 13
RULES = [
  ("batch", ("data", "fsdp")),
  ("tokens", "context"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", "fsdp"),
]
NETWORKS = {  # with the latents' size (T, H, W)
  "wan": (
    tiny.wan(dataclasses.replace(tiny.WAN, num_attention_heads=4)),
    (3, 6, 2),  # 9 tokens
  ),
  "cogvideox": (tiny.cogvideox(), (2, 4, 4)),  # 5 words and 8 tokens
}
NETWORK_MESHES = [
  ("wan", (2, 1, 2, 2), "ulysses"),
  ("cogvideox", (1, 2, 1, 4), "ring"),
]
EXCHANGES = {"local": [], "ulysses": ["all_to_all"], "ring": ["ppermute"]}


def name_of(*parts):
  return "-".join(p if type(p) is str else "x".join(map(str, p)) for p in parts)


def attention_cases():
  """Name, mesh and how tokens meet."""
  return [
    (name_of(way, shape), shape, way)
    for shape in MESHES
    for way in (("ulysses", "ring") if shape[-1] > 1 else ("local",))
  ]


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def draw_attention(queries, keys, heads=HEADS):
  """Query, key, value and the gradient of what comes of them."""
  lengths = queries, keys, keys, queries
  return draw(*[(BATCH, n, heads, 8) for n in lengths])


def values_and_gradients(function, *inputs):
  *inputs, grad = inputs
  out, pull = jax.vjp(function, *inputs)
  return jax.tree.leaves((out, pull(grad)))


INPUTS = {
  "even": draw_attention(EVEN, EVEN),
  "odd": draw_attention(ODD, ODD),
  "cross": draw_attention(ODD, TEXT),
}


def run_all(context):
  """Self- and cross-attention, of an even and an odd length."""

  def run(inputs):
    found = {}
    for name, arrays in inputs.items():
      options = {"context": context, "cross": name == "cross"}
      attend = functools.partial(attention, **options)
      found[name] = values_and_gradients(attend, *arrays)
    return found

  return run


def draw_network(denoiser, size):
  """Parameters, inputs and the gradient of the output."""
  c = denoiser.config
  params = tiny.random_params(denoiser, scale=0.3)
  return params, *draw(
    (BATCH, *size, c.in_channels),
    (BATCH, tiny.WORDS, c.text_dim),
    (BATCH, *size, c.out_channels),
  )


def run_network(denoiser):
  """A whole network and the gradients of all that goes in."""
  t = jnp.array([0.1, 0.4, 0.7, 0.9])

  def raw(params, x, text):
    return denoiser.raw(params, x, t, text)

  def run(*inputs):
    out, *gradients = values_and_gradients(raw, *inputs)
    return {"out": [out], "gradients": gradients}

  return run


def run_splash(*inputs):
  """Splash attention, without a TPU."""
  splash = functools.partial(attentions._attend_splash, interpret=True)

  def attend(query, key, value):
    return context.over_mesh(splash, query, key, value, "ulysses")

  return {"splash": values_and_gradients(attend, *inputs)}


def run_ring(*inputs):
  attend = functools.partial(attention, context="ring")
  return {"ring": values_and_gradients(attend, *inputs)}


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
    a, b = a.astype(np.float32), b.astype(np.float32)
    return float(np.abs(a - b).max() / np.abs(b).max())

  return {k: max(map(distance, ours[k], theirs[k])) for k in ours}


def on_mesh(mesh, function, wanted, *inputs):
  """What comes of a function on a mesh, beside what should have."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    traced = jax.jit(function).trace(*inputs)
    found = jax.device_get(traced.lower().compile()(*inputs))
  known = [x for way in EXCHANGES.values() for x in way]
  exchanges = [x for x in known if x in str(traced.jaxpr)]
  return {"distances": compare(found, wanted), "exchanges": exchanges}


def alone(function, *inputs):
  return jax.device_get(jax.jit(function)(*inputs))


def main(file):
  """Runs every case on eight devices and writes what came of it."""
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_disable_most_optimizations", True)
  report = {}
  wanted = alone(run_all("auto"), INPUTS)
  for name, shape, way in attention_cases():
    method = "auto" if way == "local" else way
    inputs = dict(INPUTS)
    if way == "ring":
      del inputs["cross"]  # a ring has no say in it
    report[name] = on_mesh(make_mesh(shape), run_all(method), wanted, inputs)

  for name, (denoiser, size) in NETWORKS.items():
    params, *inputs = draw_network(denoiser, size)
    wanted = alone(run_network(denoiser), params, *inputs)
    for shape, way in (c[1:] for c in NETWORK_MESHES if c[0] == name):
      mesh = make_mesh(shape)
      run = run_network(denoiser.with_config(context=way))
      found = on_mesh(mesh, run, wanted, shard(params, denoiser, mesh), *inputs)
      report[name_of(name, way, shape)] = found

  run = functools.partial(values_and_gradients, attention)
  inputs = draw_attention(141, 141, heads=4)
  wanted = {"splash": alone(run, *inputs)}
  report["splash"] = on_mesh(
    make_mesh((2, 1, 2, 2)), run_splash, wanted, *inputs
  )

  context.RING_SCORES = 1  # 150 queries a device, in chunks of 128
  inputs = draw_attention(299, 299, heads=2)
  wanted = {"ring": alone(run, *inputs)}
  mesh = make_mesh((2, 2, 1, 2))
  for dtype in ("float32", "bfloat16"):
    narrow = [x.astype(dtype) for x in inputs]
    found = on_mesh(mesh, run_ring, wanted, *narrow)
    report[f"chunks-{dtype}"] = found
  pathlib.Path(file).write_text(json.dumps(report))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  """What `main` wrote."""
  file = tmp_path_factory.mktemp("context") / "report.json"
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  subprocess.run([sys.executable, __file__, file], env=env, check=True)
  return json.loads(file.read_text())


def check(found, way, groups, most=1e-5):
  assert found["exchanges"] == EXCHANGES[way]
  assert found["distances"].keys() == groups
  for group, distance in found["distances"].items():
    assert distance <= most, group


@pytest.mark.parametrize("name, way", [c[::2] for c in attention_cases()])
def test_a_mesh_attends_as_one_device_does(report, name, way):
  cross = {"cross"} if way != "ring" else set()
  check(report[name], way, {"even", "odd"} | cross)


@pytest.mark.parametrize("network, shape, way", NETWORK_MESHES)
def test_a_mesh_runs_networks_as_one_device_does(report, network, shape, way):
  found = report[name_of(network, way, shape)]
  check(found, way, {"out", "gradients"})


def test_splash_attends_under_ulysses(report):
  check(report["splash"], "ulysses", {"splash"})


@pytest.mark.parametrize("dtype, most", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_ring_goes_chunk_by_chunk(report, dtype, most):
  check(report[f"chunks-{dtype}"], "ring", {"ring"}, most)


if __name__ == "__main__":
  main(sys.argv[1])
