"""Hand counts of FLOPs and of what devices send, and what would save memory."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dollar_jax.parallel.flops import matmul_flops
from dollar_jax.parallel.mesh import MeshConfig
from dollar_jax.train.config import (
  DataConfig,
  OptimizerConfig,
  TrainConfig,
)
from dollar_jax.train.cost import network_cost
from dollar_jax.train.remedies import remedies
from tests import tiny

LATENT = (3, 4, 6, 4)


@pytest.mark.parametrize("make", [tiny.wan, tiny.cogvideox])
def test_cost_of_a_transformer_is_what_its_jaxpr_holds(make):
  denoiser = make()
  text = (tiny.WORDS, denoiser.config.text_dim)
  x, words = jnp.ones((2, *LATENT)), jnp.ones((2, *text))
  params = tiny.random_params(denoiser)

  def total(params):
    return jnp.sum(denoiser.raw(params, x, jnp.ones(2), words))

  cost = network_cost(denoiser.config, 2, LATENT, text)
  assert matmul_flops(jax.make_jaxpr(total)(params)) == cost.forward
  both = matmul_flops(jax.make_jaxpr(jax.value_and_grad(total))(params))
  assert both == cost.forward + cost.backward


def config(**changes):
  return TrainConfig(data=DataConfig(batch_size=32), **changes)


def test_remedies_come_alone_and_then_together():
  found = list(remedies(config(mesh=MeshConfig(fsdp=2)), 8))
  flags = [remedy.flags for remedy in found]
  assert flags[0] == ("--config.remat=attention",)
  assert flags[1] == ("--config.remat=full",)
  assert ("--config.mesh.data=0", "--config.mesh.fsdp=8") in flags
  assert ("--config.optimizer.accumulate=2",) in flags
  assert all(remedy.costs for remedy in found)
  last = found[-1]
  assert last.config.remat == "offload"
  assert last.config.mesh.context == 8
  assert last.config.optimizer.accumulate == 4
  assert len(flags) == len(set(flags))


def test_remedies_leave_what_is_done_already():
  done = config(
    remat="offload",
    mesh=MeshConfig(fsdp=4, context=2),
    optimizer=OptimizerConfig(accumulate=8),
  )
  flags = [flag for remedy in remedies(done, 8) for flag in remedy.flags]
  assert not any("remat" in flag or "accumulate" in flag for flag in flags)
  for remedy in remedies(done, 8):
    dataclasses.asdict(remedy.config)
    mesh = remedy.config.mesh
    assert 8 % (mesh.fsdp * mesh.context) == 0


def test_a_remedy_is_one_for_the_fake_score_too():
  kept = config(task="distill", remat="results", score_remat="products")
  found = list(remedies(kept, 1))
  for name in ("attention", "full", "offload"):
    flags = f"--config.remat={name}", "--config.score_remat="
    remedy = next(one for one in found if one.flags == flags)
    assert (remedy.config.remat, remedy.config.score_remat) == (name, "")
