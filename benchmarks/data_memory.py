"""Host memory that the data of a run takes, at the size of Wan's videos.

  python -m benchmarks.data_memory [--batch=8] [--updates=40]

A tiny transformer is trained on latents [21, 60, 104, 16] and text [512, 4096],
both float32, 16 MiB an example, in two processes: one is given its first batch
again and again, the other loads every batch. Both have that batch, the model
and what an update needs; whatever the other has more is read ahead. Exits with
1 if a run has more than four batches at once. `--read_ahead` and
`--read_ahead_gib` are those of `config.data`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dollar_jax.data import moving_digits
from dollar_jax.data.shards import Shards
from dollar_jax.interop.parts import save_parts
from dollar_jax.interop.text_encoders import WordEncoder
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.wan import WanConfig
from dollar_jax.train import runs
from dollar_jax.train.config import DataConfig, TrainConfig

LATENT, TEXT = (21, 60, 104, 16), (512, 4096)
CLIP = (84, 480, 832)
"""Frames, height and width that the linear codec makes such latents of."""

MODEL = WanConfig(
  (3, 12, 8), 1, 12, 16, 16, TEXT[1], 16, 32, num_layers=1, scan=False
)
MOST = 4
"""Batches that a run may have at once."""

_SETTLED = 3
"""Updates until everything is compiled."""


def write_set(folder: Path, count: int) -> None:
  """Writes a set of videos of noise, with parts of its own."""
  clips = moving_digits.make_clips("train", 8).frames
  codec = LinearVAE.fit(clips, channels=LATENT[-1])
  words = moving_digits.all_captions()[0].split()
  save_parts(folder, codec, WordEncoder.create(words, TEXT[1], TEXT[0]))
  draw = np.random.default_rng(0).standard_normal
  shards = Shards(folder, 1, LATENT, TEXT)
  examples = (
    {
      "latents": draw(LATENT, np.float32),
      "text": draw(TEXT, np.float32),
      "text_mask": np.ones(TEXT[:1], bool),
      "prompt": " ".join(words),
    }
    for _ in range(count)
  )
  shards.write(0, examples, {})
  shards.finish("noise", {"video_size": CLIP, "fps": 8})


class Memory(threading.Thread):
  """Looks at this process' memory a hundred times a second."""

  def __init__(self):
    """Begins at once."""
    super().__init__(daemon=True)
    self.peak, self._ended = 0, threading.Event()
    self.start()

  def run(self) -> None:
    """Keeps the largest."""
    page = os.sysconf("SC_PAGE_SIZE")
    while not self._ended.wait(0.01):
      pages = int(Path("/proc/self/statm").read_text().split()[1])
      self.peak = max(self.peak, page * pages)

  def end(self) -> int:
    """Stops and returns the peak, in bytes."""
    self._ended.set()
    self.join()
    return self.peak


def train(folder: Path, workdir: str, args: argparse.Namespace) -> list[int]:
  """Trains; peaks of the first and of the second half, in bytes."""
  peaks, looking, first = [], [], []

  class Watched(runs.Batches):
    drawn = 0

    def next(self) -> Any:
      Watched.drawn += 1
      if Watched.drawn in (_SETTLED, args.updates // 2):
        peaks.extend(one.end() for one in looking)
        looking[:] = [Memory()]
      if not args.same:
        return super().next()
      if not first:
        first.append(super().next())
        self.iterator.close()
      return first[0]

  runs.Batches = Watched
  data = DataConfig(
    source=str(folder),
    batch_size=args.batch,
    read_ahead=0 if args.same else args.read_ahead,
    read_ahead_gib=args.read_ahead_gib,
  )
  runs.train(
    TrainConfig(steps=args.updates, model=MODEL, data=data), workdir, False
  )
  return [*peaks, *(one.end() for one in looking)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Batches that a run has at once in each half of its updates."""
  size = args.batch * 4 * (np.prod(LATENT) + np.prod(TEXT))
  with tempfile.TemporaryDirectory() as folder:
    write_set(Path(folder) / "set", args.examples)
    found = {}
    for same in (True, False):
      line = [sys.executable, "-m", "benchmarks.data_memory", *sys.argv[1:]]
      done = subprocess.run(
        [*line, f"--folder={folder}/set", *["--same"] * same],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
      )
      found[same] = json.loads(done.stdout.splitlines()[-1])
  held = [
    1 + (loaded - alone) / size
    for loaded, alone in zip(found[False], found[True], strict=True)
  ]
  return {
    "batch": int(size),
    "alone": found[True],
    "loaded": found[False],
    "held": held,
  }


def main(args: argparse.Namespace) -> None:
  """Prints both; exits with 1 if there are too many batches."""
  if args.folder:
    with tempfile.TemporaryDirectory() as workdir:
      print(json.dumps(train(Path(args.folder), workdir, args)))
    return
  found = measure(args)
  gib = 2**30
  print(f"a batch of {args.batch} is {found['batch'] / gib:.2f} GiB")
  for half in (0, 1):
    print(
      f"{('first', 'second')[half]} half of {args.updates} updates: peak "
      f"{found['loaded'][half] / gib:.2f} GiB, "
      f"{found['alone'][half] / gib:.2f} with one batch alone: "
      f"{found['held'][half]:.1f} batches at once"
    )
  if max(found["held"]) > MOST:
    sys.exit(f"a run has more than {MOST} batches at once")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  usual = DataConfig()
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--updates", type=int, default=40)
  parser.add_argument("--examples", type=int, default=8)
  parser.add_argument("--read_ahead", type=int, default=usual.read_ahead)
  parser.add_argument("--read_ahead_gib", type=float, default=4.0)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  parser.add_argument("--same", action="store_true", help=argparse.SUPPRESS)
  main(parser.parse_args())
