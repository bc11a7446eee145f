"""`dollar plan` on fake CPU devices: what it finds is what must be there."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.parallel.topologies import GIB, Machine, parse
from dollar_jax.programs import _plan as program
from dollar_jax.train.config import DistillConfig, TrainConfig
from dollar_jax.train.planning import Measured

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = """
from ml_collections import ConfigDict

from dollar_jax.train.config import complete

def get_config():
  return complete({
    "task": "distill",
    "teacher": "embedded",
    "remat": "full",
    "data": {"batch_size": 16},
    "mesh": {"fsdp": 2, "context": 2},
    "optimizer": {"ema": 0.9, "accumulate": 2},
    "score_optimizer": {"accumulate": 2},
    "distill": {"num_steps": 4, "reward_weight": 0.5, "score_steps": 3},
    "reward": {"batch_size": 8, "labels": 16, "every": 10},
    "latent_reward": {"width": 8},
  })
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  """Plans in a process that has eight devices; (plan, stdout, stderr, code)."""
  folder = tmp_path_factory.mktemp("plans")
  (folder / "config.py").write_text(CONFIG)

  def plan(*flags, topology="cpu:8"):
    out = folder / f"plan{len(list(folder.iterdir()))}.json"
    done = subprocess.run(
      [
        sys.executable,
        *("-m", "dollar_jax", "plan", f"--config={folder / 'config.py'}"),
        *(f"--topology={topology}", f"--out={out}", *flags),
      ],
      cwd=ROOT,
      env=os.environ
      | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "XDG_CACHE_HOME": str(folder / "cache"),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    made = json.loads(out.read_text()) if out.exists() else None
    return made, done.stdout, done.stderr, done.returncode

  return plan


@pytest.fixture(scope="module")
def whole(planned):
  return planned()


def test_every_program_is_compiled_and_measured(whole):
  plan, out, err, code = whole
  assert code == 0, err
  names = ["student", "score", "sampler", "decode", "reward"]
  assert sorted(plan["programs"]) == sorted(names)
  for name in names:
    assert f"| {name} |" in out
    row = plan["programs"][name]
    assert row["peak_bytes"] > row["argument_bytes"] > 0
    assert row["seconds"] > 0
  assert plan["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1, "context": 2}
  assert plan["warnings"] == []


def test_flops_are_the_ideal_and_what_remat_adds(whole):
  programs = whole[0]["programs"]
  for name in ("sampler", "reward"):
    assert programs[name]["flops_ratio"] == pytest.approx(1.0)
    assert programs[name]["stated_factor"] == 1.0
  for name in ("student", "score"):
    stated = programs[name]["stated_factor"]
    assert 1.1 < stated < 1.4
    # what lies before and behind the blocks is not made again
    assert 0.95 * stated < programs[name]["flops_ratio"] <= stated


def test_collectives_are_those_counted_by_hand(whole):
  """Exact in what a CPU gathers and exchanges; it sums where TPUs scatter."""
  programs = whole[0]["programs"]
  for name in ("student", "score", "sampler"):
    row = programs[name]
    found, by_hand = row["collectives"], row["collectives_by_hand"]
    for kind in ("all-gather", "all-to-all"):
      ratio = found[kind]["bytes"] / by_hand[kind]
      assert 0.9 < ratio < 1.1, (name, kind, ratio)


def test_what_stays_on_a_device_is_counted_by_kind(whole):
  stays, programs = whole[0]["resident_bytes"], whole[0]["programs"]
  # two networks halved by fsdp and a whole reward model; AdamW keeps two
  # numbers a parameter; the student alone has an average; one frozen teacher
  kept = stays["parameters"]
  assert stays["moments"] == pytest.approx(2 * kept, rel=0.01)
  assert stays["ema"] == pytest.approx(kept / 2, rel=0.1)
  for row in programs.values():
    inside = row["argument_bytes"] + row["waiting_bytes"]
    assert inside >= sum(stays.values())


def test_an_update_is_made_of_its_programs(whole):
  update, programs = whole[0]["update"], whole[0]["programs"]
  assert update["runs"] == {
    "student": 1,
    "score": 3,
    "sampler": 0.1,
    "decode": 0.1,
    "reward": 2,
  }
  total = sum(n * programs[k]["flops"] for k, n in update["runs"].items())
  assert update["flops"] == pytest.approx(total)


def test_memory_of_a_host_is_told(whole):
  plan, out, *_ = whole
  host = plan["host_bytes"]
  model = Pipeline.load("embedded", host=True)
  latent = model.recipe.latent_shape
  words, width = model.null_prompt["null_text"].shape
  row = 4 * math.prod(latent) + 4 * words * width + words
  assert (host["processes"], host["rows"], host["batches"]) == (1, 16, 1)
  assert host["batch_bytes"] == 16 * row
  assert host["data"] == 3 * host["batch_bytes"]
  weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.params))
  assert host["result"] == weights
  assert 0 < host["frozen"] - weights < 2**20  # a small linear codec
  stays = plan["resident_bytes"]
  saved = sum(stays[name] for name in ("parameters", "moments", "ema"))
  assert host["checkpoint"] == pytest.approx(8 * saved, rel=1e-3)
  late = max(host["checkpoint"], host["result"])
  assert host["peak"] == host["data"] + host["frozen"] + late
  assert "a process, of 1, keeps on its host, GiB: frozen 0.0" in out


def test_a_policy_of_each_step_is_counted_by_hand_too(planned, whole):
  plan, *_ = planned("--config.remat=attention", "--config.score_remat=results")
  for name in ("student", "score"):
    row, before = (one["programs"][name] for one in (plan, whole[0]))
    assert row["flops"] < before["flops"]
    assert 0.95 * row["stated_factor"] < row["flops_ratio"]
    assert row["flops_ratio"] <= row["stated_factor"]
    found, by_hand = row["collectives"], row["collectives_by_hand"]
    for kind in ("all-gather", "all-to-all"):
      ratio = found[kind]["bytes"] / by_hand[kind]
      assert 0.9 < ratio < 1.1, (name, kind, ratio)
  # what no policy touches is the same program, and is not compiled again
  for name in ("sampler", "decode", "reward"):
    assert plan["programs"][name] == whole[0]["programs"][name]


ONE_LOSS = [
  "--config.distill.vsd_weight=0.0",
  "--config.distill.reward_weight=0.0",
]


def test_the_best_strategy_is_looked_for(planned):
  two = "--config.mesh.context=1", *ONE_LOSS
  plan, out, err, code = planned("--best", *two, topology="cpu:2")
  assert code == 0, err
  best = plan["best"]
  kept = {"--config.remat=products", "--config.remat=none"}
  assert kept & set(best["flags"])
  assert best["fits"]
  assert best["tried"] == [{k: v for k, v in best.items() if k != "tried"}]
  update = plan["update"]["flops"]
  assert best["of_today"] == pytest.approx(best["flops"] / update)
  assert best["of_today"] < 0.9
  assert f"best: {' '.join(best['flags'])}" in out
  again, *_ = planned(*two, *best["flags"], topology="cpu:2")
  assert again["update"]["flops"] == pytest.approx(best["flops"])
  assert again["peak_bytes"] == best["peak_bytes"]


@pytest.mark.tpu_aot
def test_a_tpu_that_is_not_here_gets_its_best_strategy(planned):
  half = ["--config.dtype=bfloat16", "--config.frozen_dtype=bfloat16"]
  mesh = "--config.mesh.context=1"
  plan, _, err, code = planned(
    "--best", *half, *ONE_LOSS, mesh, topology="v5e:2x2"
  )
  assert code == 0, err
  best = plan["best"]
  assert best["of_today"] < 0.9
  assert best["peak_bytes"] <= plan["limit_bytes"]
  assert best["lower_bound_seconds"] == best["flops"] / 197e12


def test_what_has_no_weight_is_not_planned(planned, whole):
  off = [
    "--config.distill.vsd_weight=0.0",
    "--config.distill.reward_weight=0.0",
  ]
  plan, *_, code = planned(*off)
  assert code == 0
  assert list(plan["programs"]) == ["student"]
  assert plan["resident_bytes"]["parameters"] < (
    0.6 * whole[0]["resident_bytes"]["parameters"]
  )
  assert plan["programs"]["student"]["waiting_bytes"] == 0


def test_finished_programs_are_found_again(planned, whole):
  again, *_ = planned()
  assert again["programs"] == whole[0]["programs"]
  fresh, *_ = planned("--nocache", "--programs=decode")
  assert fresh["programs"].keys() == {"decode"}
  seconds = whole[0]["programs"]["decode"]["seconds"]
  assert fresh["programs"]["decode"]["seconds"] != seconds


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--topology=v9:2x2"], "topology 'v9:2x2' is not known; chips are v5e"),
    (
      ["--config.mesh.fsdp=3"],
      "config.mesh.fsdp is 3, which does not divide 8 devices; use 2 or 4",
    ),
    (["--config.data.batch_size=6"], "batch size 6 does not divide among 4"),
    (["--config.teacher=Wan9"], "models that can be planned without a folder"),
    (["--best", "--programs=score"], "--programs is score; leave it out"),
    (["--programs=teacher"], "this run has no program 'teacher'; it has"),
    (["--config.mesh.slices=2"], "config.mesh.slices is 2, but cpu:8 has 1"),
  ],
)
def test_bad_input_gets_one_sentence(planned, flags, said):
  made, _, err, code = planned(*flags)
  assert code == 1
  assert made is None
  assert err.splitlines()[-1].startswith("dollar plan: error: ")
  assert said in err.splitlines()[-1]


class Imagined(program.Planner):
  """A planner that compiles nothing: memory is what a test says."""

  def _measured(self, config, name, outline, mesh):
    peak = int(self.memory_of(config) * GIB)
    return Measured(peak, None, 1, 1, 0, 1.0, {}, {"count": 0, "bytes": 0}, 1.0)


@pytest.fixture
def imagine(monkeypatch):
  """Plans a student where a device has 8 GiB; (plan, refusal)."""
  monkeypatch.setattr(Machine, "memory", property(lambda machine: 8.0 * GIB))

  def plan(memory_of):
    planner = Imagined(parse("cpu:1"), False, False)
    planner.memory_of = memory_of
    config = TrainConfig("distill", distill=DistillConfig(vsd_weight=0.0))
    made = planner.plan(config)
    if not made["fits"]:
      made["remedy"] = planner.find_remedy(config, made)
      return made, program._why_not(made)
    return made, None

  return plan


def test_the_cheapest_remedy_is_named_with_its_price(imagine):
  sizes = {"none": 12.5, "attention": 9.0, "full": 6.0, "offload": 5.0}
  made, refusal = imagine(lambda config: sizes[config.remat])
  assert made["remedy"]["flags"] == ["--config.remat=full"]
  tried = [one["flags"] for one in made["remedy"]["tried"]]
  assert tried == [["--config.remat=attention"], ["--config.remat=full"]]
  assert refusal == (
    "the student program needs 12.50 GiB a device and cpu:1 gives 8.00: 4.50 "
    "too much; --config.remat=full fits, with 6.00 GiB, and costs a forward "
    "pass more for every gradient"
  )


def test_remedies_are_taken_together_where_none_is_enough(imagine):
  def memory_of(config):
    remade = config.remat in ("full", "offload")
    return 12.0 - 2 * remade - config.optimizer.accumulate / 3

  made, refusal = imagine(memory_of)
  flags = made["remedy"]["flags"]
  assert flags[0] == "--config.remat=full"
  assert "--config.optimizer.accumulate=8" in flags
  assert f"{' '.join(flags)} fits, with 7.33 GiB" in refusal


def test_what_nothing_makes_fit_says_how_near_it_came(imagine):
  made, refusal = imagine(lambda config: 50.0 - (config.remat == "full"))
  assert made["remedy"]["flags"] is None
  assert refusal.startswith("the student program needs 50.00 GiB a device")
  assert "the least being 49.00 GiB with --config.remat=full" in refusal
  assert refusal.endswith("config.lora_rank")


def test_what_fits_is_left_alone(imagine):
  made, refusal = imagine(lambda config: 7.9)
  assert made["fits"]
  assert refusal is None
