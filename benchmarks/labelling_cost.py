"""What labels cost a run whose reward takes as long as an update.

  python benchmarks/labelling_cost.py [--config=configs/digits/reward.py]

One run whose labels are made in the background, in blocks of updates that take
turns: in every second one each call of the reward sleeps for as long as an
update takes. The medians of both kinds tell what that costs; beside it stands
what it would cost in line. Exits with 1 above 10 %.
"""

import argparse
import dataclasses
import runpy
import sys
import tempfile
import time
from typing import Any

import numpy as np

from dollar_jax.rewards.base import get_reward, register
from dollar_jax.train import loop, runs
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.save_times import SaveTimes

LIMIT = 0.1
"""Share of a run that a reward as slow as its updates may take."""

NAME = "slow_in_turns"


class Blocks(SaveTimes):
  """Saves nothing, and takes the times of blocks of updates."""

  size = 20
  times: list[float] = []

  def due(self, step: int) -> bool:
    """Never; notes when `step` was done."""
    self.times.append(time.perf_counter())
    return False


def seconds_to_sleep() -> float:
  """An update's median time in every second block, else 0."""
  done, size = len(Blocks.times), Blocks.size
  if done < 2 * size or done // size % 2 == 0:
    return 0.0
  return float(np.median(np.diff(Blocks.times[size : 2 * size])))


def measure(config: TrainConfig, updates: int, size: int) -> dict[str, Any]:
  """Runs the updates in a temporary folder."""
  reward = get_reward(config.reward.name)
  slept: list[float] = []

  @register(NAME, kind=reward.kind, prompted=reward.uses_text)
  def slow(frames: np.ndarray, prompts: list[str]) -> Any:
    slept.append(seconds_to_sleep())
    time.sleep(slept[-1])
    return reward(frames, prompts)

  config = dataclasses.replace(
    config,
    steps=updates,
    student="",
    reward=dataclasses.replace(
      config.reward, name=NAME, labelling="background"
    ),
    distill=dataclasses.replace(config.distill, cd_warmup=0, score_warmup=0),
  )
  Blocks.size, Blocks.times = size, []
  usual = loop.SaveTimes
  loop.SaveTimes = Blocks
  try:
    with tempfile.TemporaryDirectory() as workdir:
      runs.train(config, workdir)
  finally:
    loop.SaveTimes = usual
  blocks = np.diff(np.array(Blocks.times)[size - 1 :: size])
  # the first block after the one that compiled tells how long to sleep
  slow_blocks, fast_blocks = blocks[2::2], blocks[1::2]
  fast = float(np.median(fast_blocks))
  calls = sum(s > 0 for s in slept) / len(slow_blocks)
  return {
    "update": fast / size,
    "cost": float(np.median(slow_blocks)) / fast - 1,
    "inline": calls * max(slept) / fast,
  }


def main(args: argparse.Namespace) -> None:
  """Prints the cost; exits with 1 if it is over its limit."""
  values = runpy.run_path(args.config)["get_config"]()
  config = from_config_dict(values.to_dict())
  found = measure(config, args.updates, args.block)
  print(
    f"an update takes {found['update'] * 1e3:.0f} ms; a reward as slow as that "
    f"costs {found['cost']:.1%} of a run that labels in the background, and "
    f"would cost {found['inline']:.1%} in line"
  )
  if found["cost"] > LIMIT:
    sys.exit("labelling costs more than it may")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/digits/reward.py")
  parser.add_argument("--updates", type=int, default=200)
  parser.add_argument("--block", type=int, default=20)
  main(parser.parse_args())
