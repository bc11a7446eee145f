"""Names of machines, and devices to compile for."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dollar_jax.parallel import topologies
from dollar_jax.parallel.mesh import MeshConfig, make_mesh
from dollar_jax.parallel.topologies import GIB, parse


@pytest.mark.parametrize(
  "name, devices, memory",
  [
    ("v5e:16x16", 256, 15.75),
    ("v5p:4x4x4", 64, 95.73),
    ("v6e:8x8", 64, 31.24),
    ("tpu7x:4x4x4", 128, 94.74),
    ("2*v5e:4x4", 32, 15.75),
    ("h100:8x8", 64, 0.75 * 79.6),
    ("h100:4", 4, 0.75 * 79.6),
    ("cpu:8", 8, 0.0),
  ],
)
def test_names(name, devices, memory, monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  machine = parse(name)
  assert machine.devices == devices
  assert machine.memory / GIB == pytest.approx(memory)


@pytest.mark.parametrize(
  "name, said",
  [
    ("v4:2x2x1", "chips are v5e, v5p, v6e, tpu7x, h100, h200, cpu"),
    ("v5e", "written like v5e:16x16"),
    ("v5e:3x3", "v5e comes as 1x1, 2x2, 2x4"),
    ("v5e:4x4x4", "v5e comes as 1x1"),
    ("h100:2x2x2", "h100 is written like"),
    ("h100:0x8", "h100 is written like"),
    ("2*h100:8x8", "has slices, which only TPUs come in; write h100:8x8"),
    ("v5e:16x16; rm", "is not known"),
  ],
)
def test_unknown_names_are_refused_with_the_known(name, said):
  with pytest.raises(ValueError, match="topology") as caught:
    parse(name)
  assert said in str(caught.value)
  assert repr(name) in str(caught.value)


def test_a_share_of_a_gpus_memory_can_be_asked_for(monkeypatch):
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
  assert parse("h200:8").memory == pytest.approx(0.9 * 140.4 * GIB)


def test_more_cpu_devices_than_jax_has_started_with():
  jax.devices()
  with pytest.raises(ValueError, match="plan it in a process of its own"):
    topologies.open_devices(parse("cpu:64"))


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:8"])
def test_a_compiler_that_is_not_installed_is_named(name, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=f"compiles for {name}"):
    topologies.open_devices(parse(name))


@pytest.mark.tpu_aot
@pytest.mark.parametrize(
  "name, config",
  [
    ("v5e:2x4", MeshConfig(fsdp=4)),
    ("2*v5e:2x2", MeshConfig(fsdp=4, slices=2)),
  ],
)
def test_a_program_is_compiled_for_a_tpu_that_is_not_here(name, config):
  mesh = make_mesh(config, topologies.open_devices(parse(name)))
  assert mesh.shape == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
  if config.slices > 1:  # along data, and nowhere else
    slices = [{d.slice_index for d in row.flat} for row in mesh.devices]
    assert slices == [{0}, {1}]
  x = jax.ShapeDtypeStruct(
    (8, 128), jnp.float32, sharding=NamedSharding(mesh, P("data"))
  )
  compiled = jax.jit(jnp.sum).lower(x).compile()
  assert compiled.memory_analysis().argument_size_in_bytes == 4 * 128 * 4
