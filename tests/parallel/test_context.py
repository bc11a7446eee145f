"""Attention on a mesh of eight devices against attention on one.

The devices need a process of their own (see tests/conftest.py): this file, run
as a program, which writes what each case got.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dollar_jax.models import attention as attentions
from dollar_jax.models.attention import attention
from dollar_jax.parallel import context
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
AXES = ("data", "fsdp", "tensor", "context")
MESHES = [
  (8, 1, 1, 1),
  (2, 2, 2, 1),
  (1, 1, 8, 1),
  (1, 1, 1, 8),
  (2, 1, 1, 4),
  (1, 2, 1, 4),
  (1, 1, 4, 2),
  (2, 2, 1, 2),
  (1, 2, 2, 2),
]
HEADS, TEXT = 8, 3
LENGTHS = {"even": 16, "odd": 13, "short": 1}
RULES = [
  ("batch", ("data", "fsdp")),
  ("tokens", "context"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", "fsdp"),
]
WAN = dataclasses.replace(tiny.WAN, num_attention_heads=4)
COGVIDEOX = tiny.COGVIDEOX
MODELS = [  # name, denoiser, mesh, way of meeting, latents of an odd length
  ("wan", tiny.wan(WAN), (2, 1, 2, 2), "ulysses", (3, 6, 2)),
  ("wan", tiny.wan(WAN), (1, 2, 1, 4), "ring", (3, 6, 6)),
  ("wan", tiny.wan(WAN), (1, 1, 2, 4), "auto", (3, 4, 2)),
  ("cogvideox", tiny.cogvideox(COGVIDEOX), (2, 2, 1, 2), "ulysses", (2, 4, 6)),
  ("cogvideox", tiny.cogvideox(COGVIDEOX), (2, 1, 1, 4), "ring", (2, 4, 4)),
]


def attention_cases():
  """Yields name, mesh and way of meeting."""
  for shape in MESHES:
    ways = ("ulysses", "ring") if shape[-1] > 1 else ("none",)
    for way in ways:
      yield f"{way}-{'x'.join(map(str, shape))}", shape, way


def model_cases():
  """Yields name and what is in `MODELS`."""
  for name, denoiser, shape, way, size in MODELS:
    mesh = "x".join(map(str, shape))
    yield f"{name}-{way}-{mesh}", denoiser, shape, way, size


def draw(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def values_and_gradients(attend):
  """What self- and cross-attention give, for every length."""

  def run():
    found = {}
    for name, length in LENGTHS.items():
      for cross in (False, True):
        keys = TEXT if cross else length
        x = draw(*[(4, n, HEADS, 6) for n in (length, keys, keys, length)])
        out, pull = jax.vjp(lambda *x, c=cross: attend(*x, cross=c), *x[:3])
        found[f"{name}-{'cross' if cross else 'self'}"] = [out, *pull(x[3])]
    return found

  return jax.jit(run)()


def model_and_gradients(denoiser, params, size):
  """A network's output, and gradients of its parameters and inputs."""
  c = denoiser.config
  x, text, weight = draw(
    (4, *size, c.in_channels),
    (4, tiny.WORDS, c.text_dim),
    (4, *size, c.out_channels),
  )
  t = jnp.array([0.1, 0.4, 0.7, 0.9])

  def run(params, x, text):
    out, pull = jax.vjp(lambda *a: denoiser.raw(a[0], a[1], t, a[2]), *inputs)
    return out, pull(weight)

  inputs = params, x, text
  return jax.jit(run)(*inputs)


def shard(denoiser, params, mesh):
  """Parameters as their logical axes say."""
  shapes = jax.eval_shape(
    denoiser.module.init,
    jax.random.key(0),
    *(
      jnp.zeros(shape)
      for shape in denoiser.config.smallest_inputs.values()
    ),
  )["params"]
  specs = nn.get_partition_spec(shapes)
  return jax.device_put(params, nn.logical_to_mesh_sharding(specs, mesh, RULES))
