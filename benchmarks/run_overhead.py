"""What a run spends beside its updates: on checkpoints, and on its data.

  python benchmarks/run_overhead.py [--config=configs/digits/teacher.py]

One run in blocks of updates that take turns: in every second one a checkpoint
is begun, whose writing goes on in the background. The medians of both kinds
tell what a save costs. Then the loader alone draws batches of the same data;
what the updates drew is counted. Exits with 1 if a run that saves as often as
the config says spends more than 5 % on that, or if the loader is not ten times
as fast as the updates. Saving every 20 updates is told as well.
"""

import argparse
import dataclasses
import runpy
import sys
import tempfile
import time
from typing import Any

import numpy as np

from dollar_jax.train import loop, runs
from dollar_jax.train.config import TrainConfig, from_config_dict
from dollar_jax.train.save_times import SaveTimes

LIMIT = 0.05
"""Share of a run that its saves may take."""

FASTER = 10
"""How many times as fast as the updates the loader must be."""


class Blocks(SaveTimes):
  """Saves as every second block begins, and takes the times."""

  size = 10
  times: list[float] = []

  def due(self, step: int) -> bool:
    """Whether such a block begins after `step`."""
    self.times.append(time.perf_counter())
    return step % (2 * self.size) == 0


def medians(times: list[float], size: int) -> tuple[float, float]:
  """Seconds of a block without a save and of one with.

  The first two blocks compile, and are left out.

  Args:
    times: at the end of every update.
    size: updates in a block, as in `Blocks`.

  Raises:
    ValueError: if there are fewer than four whole blocks.
  """
  ends = np.array(times[size - 1 :: size])
  blocks = np.diff(ends)[1:]  # the first of them saves: it begins at 2 * size
  if len(blocks) < 2:
    raise ValueError(f"{len(times)} updates are too few for blocks of {size}")
  return float(np.median(blocks[1::2])), float(np.median(blocks[::2]))


def measure(config: TrainConfig, updates: int, size: int) -> dict[str, Any]:
  """Runs the updates and then the loader alone, in a temporary folder."""
  config = dataclasses.replace(
    config,
    steps=updates,
    distill=dataclasses.replace(config.distill, cd_warmup=0, score_warmup=0),
  )
  drawn: list[Any] = []

  class Counted(loop.Batches):
    def next(self) -> Any:
      drawn.append(self)
      return super().next()

  Blocks.size, Blocks.times = size, []
  usual = loop.SaveTimes, runs.Batches
  loop.SaveTimes, runs.Batches = Blocks, Counted
  try:
    with tempfile.TemporaryDirectory() as workdir:
      runs.train(config, workdir)
      count, batches = len(drawn), drawn[-1]
      batches.next()
      began = time.perf_counter()
      for _ in range(count):
        batches.next()
      loading = (time.perf_counter() - began) / count
  finally:
    loop.SaveTimes, runs.Batches = usual
  without, with_save = medians(Blocks.times, size)
  save, interval = with_save - without, config.checkpoint.every * without / size
  return {
    "update": without / size,
    "save": save,
    "often": save / (save + 2 * without),
    "share": save / (save + interval),
    "batches": count / updates,
    "batch": loading,
    "faster": without / size / (count / updates * loading),
  }


def main(args: argparse.Namespace) -> None:
  """Prints both; exits with 1 if either is over its limit."""
  values = runpy.run_path(args.config)["get_config"]()
  config = from_config_dict(values.to_dict())
  found = measure(config, args.updates, args.block)
  every = 2 * args.block
  print(
    f"an update takes {found['update'] * 1e3:.1f} ms; a save adds "
    f"{found['save'] * 1e3:.1f} ms: {found['often']:.2%} of a run that saves "
    f"every {every} updates, {found['share']:.2%} of one that does every "
    f"{config.checkpoint.every}, as the config says"
  )
  print(
    f"a batch takes {found['batch'] * 1e3:.2f} ms to load; an update draws "
    f"{found['batches']:.2f}: the loader is {found['faster']:.0f} times as fast"
  )
  if found["share"] > LIMIT or found["faster"] < FASTER:
    sys.exit("saving or loading costs more than it may")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/digits/student.py")
  parser.add_argument("--updates", type=int, default=300)
  parser.add_argument("--block", type=int, default=10)
  main(parser.parse_args())
