"""The strategies of the real sizes fit the machines that they are for."""

import pathlib
import runpy

import pytest

from dollar_jax.parallel.mesh import mesh_shape
from dollar_jax.parallel.topologies import parse
from dollar_jax.train.config import from_config_dict

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
MACHINES = {"v5e": "v5e:16x16", "v5p": "v5p:4x4x4", "h100": "h100:8x8"}
SIZES = ["t2v_1_3b", "t2v_14b", "ti2v_5b", "t2v_a14b"]
WAN = [("wan", f"{size},{name}") for size in SIZES for name in MACHINES]
CHOICES = [*WAN, *(("cogvideox", name) for name in MACHINES)]
DISTILL = "distill.py"
REWARDS = {"reward_pickscore.py": "pickscore", "reward_hpsv2.py": "hpsv2"}


def get_config(family, *choice, file=DISTILL):
  module = runpy.run_path(str(CONFIGS / family / file))
  return from_config_dict(module["get_config"](*choice).to_dict())


@pytest.mark.parametrize(
  "family, choice, file",
  [(*choice, DISTILL) for choice in CHOICES]
  + [(*choice, file) for choice in WAN for file in REWARDS],
)
def test_no_device_waits_and_no_microbatch_is_torn(family, choice, file):
  config = get_config(family, choice, file=file)
  machine = parse(MACHINES[choice.rpartition(",")[2]])
  data, fsdp, tensor, context = mesh_shape(config.mesh, machine.devices)
  assert data * fsdp * tensor * context == machine.devices
  groups, batch = data * fsdp, config.data.batch_size
  # whole rollouts for every group, and every microbatch on all of them
  assert batch % (groups * config.distill.num_steps) == 0
  for optimizer in (config.optimizer, config.score_optimizer):
    assert batch % (groups * optimizer.accumulate) == 0
  assert config.reward.batch_size % groups == 0
  assert config.remat == "full"


@pytest.mark.parametrize("file, reward", REWARDS.items())
def test_a_reward_is_all_that_a_tuning_adds(file, reward):
  tuning, before = get_config("wan", file=file), get_config("wan")
  assert tuning.distill.reward_weight == 1.0
  assert tuning.reward.name == reward
  assert tuning.guard.every % tuning.log_every == 0
  for name in ("teacher", "mesh", "data", "optimizer", "score_optimizer"):
    assert getattr(tuning, name) == getattr(before, name)


@pytest.mark.parametrize("family, choice", [("wan", "t2v_1_3b"), ("wan", "")])
def test_without_a_machine_there_is_one_device(family, choice):
  config = get_config(family, *([choice] if choice else []))
  assert mesh_shape(config.mesh, 1) == (1, 1, 1, 1)
  assert config.teacher == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
  assert config.data.clip == (81, 480, 832)


@pytest.mark.parametrize(
  "family, choice",
  [("wan", "t2v_2b"), ("wan", "t2v_14b,v4"), ("cogvideox", "v4")],
)
def test_unknown_choices_are_named_beside_the_known(family, choice):
  with pytest.raises(ValueError, match="unknown; use one of"):
    get_config(family, choice)
