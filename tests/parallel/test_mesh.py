"""Sizes of the mesh, and where arrays lie on it."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dollar_jax.diffusion.process import FlowProcess
from dollar_jax.interop.keymaps import TRANSFORMERS
from dollar_jax.interop.published import PUBLISHED
from dollar_jax.models.denoiser import Denoiser, make_wan
from dollar_jax.models.lora import adapter_axes, init_adapters
from dollar_jax.models.wan import WanConfig
from dollar_jax.parallel import rules
from dollar_jax.parallel.mesh import (
  AXES,
  MeshConfig,
  check_batch,
  make_mesh,
  mesh_shape,
  process_rows,
)
from dollar_jax.train import state as states


def abstract(*sizes):
  return AbstractMesh(sizes, AXES)


@pytest.mark.parametrize(
  "config, shape",
  [
    (MeshConfig(), (8, 1, 1, 1)),
    (MeshConfig(fsdp=4), (2, 4, 1, 1)),
    (MeshConfig(fsdp=2, tensor=2, context=2), (1, 2, 2, 2)),
    (MeshConfig(data=4, tensor=2, slices=2), (4, 1, 2, 1)),
  ],
)
def test_data_takes_what_is_left(config, shape):
  assert mesh_shape(config, 8) == shape


@pytest.mark.parametrize(
  "config, sentence",
  [
    (
      MeshConfig(tensor=3),
      "config.mesh.tensor is 3, which does not divide 8 devices; use 2 or 4",
    ),
    (
      MeshConfig(context=0),
      "config.mesh.context is 0, which does not divide 8 devices; use 1",
    ),
    (
      MeshConfig(fsdp=8, context=4),
      (
        "config.mesh has fsdp x tensor x context = 32, which does not divide 8 "
        "devices; make it 8"
      ),
    ),
    (
      MeshConfig(data=2, fsdp=2),
      (
        "config.mesh has data x fsdp x tensor x context = 4, but there are 8 "
        "devices; set config.mesh.data to 4, or to 0, which takes what is left"
      ),
    ),
    (
      MeshConfig(fsdp=8, slices=2),
      (
        "config.mesh.slices is 2, which does not divide the 1 devices along "
        "data; use 1"
      ),
    ),
  ],
)
def test_what_does_not_divide_is_refused(config, sentence):
  with pytest.raises(ValueError) as error:
    mesh_shape(config, 8)
  assert str(error.value) == sentence


def test_a_batch_must_spread_evenly():
  check_batch(8, abstract(2, 4, 1, 2))
  with pytest.raises(
    ValueError, match=r"batch size 12 .* 8 devices; use a mul"
  ):
    check_batch(12, abstract(2, 4, 1, 2))


def test_one_process_has_all_rows():
  assert process_rows(3, make_mesh()) == [0, 1, 2]


@pytest.mark.parametrize(
  "names, shape, wanted",
  [
    (("embed", "heads"), (8, 6), P(("fsdp",), ("tensor",))),
    (("embed", "heads"), (6, 6), P(None, ("tensor",))),  # 6 / 4
    ((None, "norm"), (4, 8), P(None, None)),
    (("batch", "tokens"), (8, 6), P(("data", "fsdp"), ("context",))),
    (("batch", "tokens"), (2, 5), P(("data",), None)),
    (("batch", "tokens"), (4, 5), P(("data",), None)),  # 4 / 2 left for 4
  ],
)
def test_axes_go_where_they_divide(names, shape, wanted):
  assert rules.spec(names, shape, abstract(2, 4, 2, 2)) == wanted


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("rank", [0, 2])
def test_all_that_is_as_large_as_the_parameters_is_split(optimizer, rank):
  config = WanConfig(
    num_attention_heads=2,
    attention_head_dim=8,
    ffn_dim=32,
    freq_dim=16,
    text_dim=16,
    in_channels=4,
    out_channels=4,
    num_layers=2,
  )
  denoiser, mesh = make_wan(config), abstract(1, 4, 2, 1)
  made = {
    "adamw": optax.adamw(1e-3),
    "muon": optax.contrib.muon(1e-3),
  }[optimizer]

  def create(key):
    params = denoiser.init(key, (2, 4, 4, 4), (3, 16))
    if rank:
      params = init_adapters(key, params, rank)
    return states.create(params, made, ema=True)

  state = jax.eval_shape(create, jax.random.key(0))
  axes = denoiser.logical_axes
  if rank:
    axes = adapter_axes(axes, state.params)
  placed = rules.shardings_of(states.placed(state, axes, mesh))
  assert jax.tree.structure(placed) == jax.tree.structure(state)

  def share(tree, shardings):
    """Bytes of a device, over all bytes."""
    leaves = jax.tree.leaves(tree)
    parts = [
      np.prod(s.shard_shape(x.shape)) if x.shape else 1
      for x, s in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    return sum(parts) / sum(x.size for x in leaves)

  for part in ("params", "ema", "opt_state"):
    found = share(getattr(state, part), getattr(placed, part))
    # norms, tables and biases are small and lie everywhere
    assert found < (0.5 if rank else 0.2), part
  whole = jax.tree.leaves(placed.updates)[0]
  assert whole == NamedSharding(mesh, P())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_axis_of_every_model_has_a_place(name):
  config = dataclasses.replace(PUBLISHED[name], num_layers=2)
  kinds = {k.config: k.module for k in TRANSFORMERS.values()}
  module = kinds[type(config)](config)
  axes = Denoiser(module, FlowProcess(), "flow").logical_axes
  leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, P))
  assert {name for leaf in leaves for name in leaf if name} <= set(rules.RULES)
