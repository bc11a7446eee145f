"""Sampled videos on their way into files, and how long each stage takes."""

import itertools
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dollar_jax.data.videos import write_video
from dollar_jax.files import written_whole
from dollar_jax.interop.pipeline import Batch
from dollar_jax.parallel.machine import Pace

_STAGES = ("text", "denoising", "decoding", "writing")

_WRITERS = 2
"""Videos written at once; large ones are encoded by several threads each."""


def write_clips(
  batches: Iterable[Batch], files: Sequence[Sequence[Path]], fps: float
) -> dict[str, Any]:
  """Writes videos, each batch while the next one is sampled.

  Args:
    batches: of `Pipeline.batches`.
    files: of each video. An .npy file gets its latents, another its frames;
      what is there is kept.
    fps: frames a second.

  Returns:
    How long a video took, for `machine.json`: medians over the batches after
    the first. `seconds_per_video` is noise to pixels; `wall_seconds_per_video`
    what the clock says from prompt to file, of full batches; `overlap` the
    share of the stages' sum that it saves; `compile_seconds` are in all. Empty
    before the second batch.

  Raises:
    OSError: if a file cannot be written; no other is begun then.
  """
  size, compiling = 1, 0.0
  paces = {stage: Pace() for stage in _STAGES}
  sampling, wall = Pace(), Pace()
  with ThreadPoolExecutor(_WRITERS) as pool:
    wall.start()
    for batch in batches:
      count = len(batch.rows)
      size = max(size, count)
      some = [files[row] for row in batch.rows]
      frames = itertools.repeat(None) if batch.frames is None else batch.frames
      rate = itertools.repeat(fps)
      writing = time.perf_counter()
      list(pool.map(_write, some, batch.x0, frames, rate))  # raises what fails
      writing = time.perf_counter() - writing
      seconds = {**batch.seconds, "writing": writing * size / count}
      compiling += seconds.get("compiling", 0.0)
      for stage, pace in paces.items():
        pace.add(seconds[stage])
      sampling.add(seconds["denoising"] + seconds["decoding"])
      if count == size:
        wall.stop()
        wall.start()
  if sampling.median is None:
    return {}
  stages = {stage: pace.median / size for stage, pace in paces.items()}
  note = {
    "seconds_per_video": sampling.median / size,
    "stage_seconds_per_video": stages,
    "compile_seconds": compiling,
  }
  if wall.median is not None:
    note["wall_seconds_per_video"] = wall.median / size
    note["overlap"] = max(0.0, 1 - wall.median / size / sum(stages.values()))
  return note


def _write(
  files: Sequence[Path], x0: np.ndarray, frames: np.ndarray | None, fps: float
) -> None:
  """Writes what is absent of a video."""
  for file in files:
    if file.exists():
      continue
    if file.suffix == ".npy":
      with written_whole(file) as part, part.open("wb") as stream:
        np.save(stream, x0)
    else:
      write_video(file, frames, fps)
