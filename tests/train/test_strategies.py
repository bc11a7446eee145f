"""The search for a strategy: what it counts, and what it learns."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from dollar_jax.models.blocks import REMAT_POLICIES
from dollar_jax.parallel.flops import matmul_flops
from dollar_jax.parallel.mesh import MeshConfig, make_mesh
from dollar_jax.parallel.topologies import GIB, Machine, parse
from dollar_jax.programs import _plan as program
from dollar_jax.programs._plan_table import best_table
from dollar_jax.train import strategies
from dollar_jax.train.config import (
  DataConfig,
  DistillConfig,
  OptimizerConfig,
  TrainConfig,
)
from dollar_jax.train.cost import network_cost
from dollar_jax.train.outline import outline_run
from dollar_jax.train.planning import Measured
from dollar_jax.train.strategies import apply_once
from tests import tiny

LATENT, VIDEOS = (3, 4, 6, 4), 2


@pytest.mark.parametrize("make", [tiny.wan, tiny.cogvideox])
def test_every_policy_makes_again_what_it_says(make):
  plain = make()
  text = (tiny.WORDS, plain.config.text_dim)
  params = tiny.random_params(plain)
  x, words = jnp.ones((VIDEOS, *LATENT)), jnp.ones((VIDEOS, *text))

  def flops(remat):
    denoiser = plain.with_config(remat=remat)

    def total(params):
      return jnp.sum(denoiser.raw(params, x, jnp.ones(VIDEOS), words))

    return matmul_flops(jax.make_jaxpr(jax.value_and_grad(total))(params))

  net = network_cost(plain.config, VIDEOS, LATENT, text)
  assert flops("none") == net.forward + net.backward
  # the scores, from which attention came, are made again
  assert flops("products") - flops("none") == net.attention / 2
  assert flops("narrow") - flops("products") == net.wider
  assert flops("attention") - flops("results") == net.narrower
  assert flops("full") - flops("attention") == net.attention / 2
  assert flops("results") > flops("narrow")
  assert flops("offload") == flops("full")


@pytest.mark.parametrize("name", ["attention", "results", "narrow", "products"])
def test_what_cudnn_gives_is_kept_where_attention_is(name):
  kernel = types.SimpleNamespace(name="dot_product_attention_fwd_wrapper")
  assert REMAT_POLICIES[name](kernel)
  assert not REMAT_POLICIES[name](types.SimpleNamespace(name="exp"))


def test_what_is_kept_for_the_gradient_is_counted():
  config = TrainConfig("distill", data=DataConfig(batch_size=4))
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  outline = outline_run(config, mesh)
  c, (time, height, width, _) = (
    outline.base.denoiser.config,
    outline.base.recipe.latent_shape,
  )
  tokens = time * height * width
  for size in c.patch_size:
    tokens //= size
  layer = 4 * tokens * c.width * c.num_layers  # float32
  kept = {
    name: apply_once(outline, mesh, name).kept
    for name in ("full", "attention", "products", "none")
  }
  assert layer < kept["full"] < 3 * layer  # and what lies around the blocks
  # of attention to the tokens, and to the text
  assert kept["attention"] - kept["full"] == 2 * layer
  up = c.ffn_dim / c.width
  more = kept["products"] - kept["attention"]
  assert more == pytest.approx((4 + 2 + 1 + up) * layer, rel=0.1)
  assert kept["none"] > kept["products"]


class Imagined(program.Planner):
  """A planner that compiles nothing: memory is what a test says."""

  def _measured(self, config, name, outline, mesh):
    self.compiled.append((config, name))
    held = int(0.5 * GIB)
    peak = int(self.memory_of(config, name) * GIB)
    wanted = None if peak <= 8 * GIB else peak
    return Measured(
      None if wanted else peak,
      wanted,
      held,
      None if wanted else peak - held,
      0,
      5e9,  # about what a step has
      {},
      {"count": 0, "bytes": 0},
      1.0,
    )


@pytest.fixture(scope="module")
def traced():
  """What was traced of this module's run, by policy."""
  return {}


@pytest.fixture
def search(monkeypatch, traced):
  """Looks for the best where a device has 8 GiB; (plan, compiled)."""
  monkeypatch.setattr(Machine, "memory", property(lambda machine: 8.0 * GIB))

  real = strategies.apply_once

  def once(outline, mesh, remat):
    if remat not in traced:
      traced[remat] = real(outline, mesh, remat)
    return traced[remat]

  monkeypatch.setattr(strategies, "apply_once", once)

  def search(memory_of, **changes):
    planner = Imagined(parse("cpu:1"), False, False)
    planner.memory_of, planner.compiled = memory_of, []
    config = TrainConfig(
      "distill",
      remat="full",
      data=DataConfig(batch_size=4),
      optimizer=OptimizerConfig(accumulate=2),
      score_optimizer=OptimizerConfig(accumulate=2),
      distill=DistillConfig(num_steps=2),
    )
    config = dataclasses.replace(config, **changes)
    plan = planner.plan(config)
    planner.compiled.clear()
    plan["best"] = planner.find_best(config, plan)
    return plan, planner.compiled

  return search


def test_where_everything_fits_nothing_is_made_again(search):
  plan, compiled = search(lambda config, name: 1.0)
  best = plan["best"]
  # one device sends nothing, so that microbatches are left as they are
  assert best["flags"] == ["--config.remat=none"]
  assert sorted(name for _, name in compiled) == ["score", "student"]
  assert 0 < best["of_today"] < 1
  assert f"best: {' '.join(best['flags'])}" in best_table(plan)


KEPT = {"full": 0, "attention": 1, "results": 2, "narrow": 5}


def memory(config, name):
  """Two networks for the student, one for the score, in GiB."""
  score = name == "score"
  remat = (config.score_remat if score else "") or config.remat
  optimizer = config.score_optimizer if score else config.optimizer
  kept = KEPT.get(remat, 12) * (1 if score else 2)
  return 3.0 + (1.0 + kept) * 2 / optimizer.accumulate


def test_the_score_may_keep_more_than_the_student(search):
  plan, _ = search(memory)
  best = plan["best"]
  fits = {
    (remat, count)
    for remat in KEPT
    for count in (1, 2, 4)
    if 3.0 + (1 + 2 * KEPT[remat]) * 2 / count <= 8
  }
  flags = dict(flag[len("--config.") :].split("=") for flag in best["flags"])
  student = flags["remat"], int(flags.get("optimizer.accumulate", 2))
  assert student in fits
  assert student[0] == "results"  # narrow needs 8.5
  assert flags["score_remat"] == "narrow"
  assert best["peak_bytes"] <= 8 * GIB
  assert 0 < best["of_today"] < 1


def test_what_did_not_fit_puts_predictions_right(search, traced):
  def memory_of(config, name):
    """Twice as much beyond what "full" keeps as is predicted."""
    score = name == "score"
    remat = (config.score_remat if score else "") or config.remat
    optimizer = config.score_optimizer if score else config.optimizer
    passes, full = (1 if score else 2), 2 * traced["full"].kept
    videos = 4 / optimizer.accumulate
    more = passes * (videos * traced[remat].kept - full)
    # room for "results", and for twice as much in the score's step
    room = 2.2 * 2 * 2 * (traced["results"].kept - traced["full"].kept)
    return 8.0 - (room - 2 * max(more, 0.0)) / GIB

  search(lambda config, name: 1.0)  # traces every policy
  plan, compiled = search(memory_of)
  tried = plan["best"]["tried"]
  assert len(tried) > 1
  assert tried[-1]["fits"]
  assert not any(one["fits"] for one in tried[:-1])
  ranks = [round(one["of_today"], 3) for one in tried]
  assert ranks == sorted(ranks)
  # of 7 policies and 3 microbatches, of each of two steps
  assert len(compiled) < 10


def test_what_is_best_already_is_said_to_be(search):
  one = OptimizerConfig()
  plan, compiled = search(
    lambda config, name: 7.0,
    remat="none",
    optimizer=one,
    score_optimizer=one,
  )
  assert plan["best"]["flags"] == []
  assert plan["best"]["of_today"] == 1
  assert "best: the config as it is" in best_table(plan)
  assert sorted(name for _, name in compiled) == ["score", "student"]


def test_where_nothing_fits_the_least_is_told(search):
  plan, compiled = search(lambda config, name: 80.0 - config.steps / 1e6)
  assert plan["best"]["flags"] is None
  assert compiled == [] or plan["best"]["tried"]
  sentence = program._why_none(plan)
  assert sentence.startswith("no strategy fits cpu:1, which gives 8.00 GiB")
  assert "config.lora_rank" in sentence
