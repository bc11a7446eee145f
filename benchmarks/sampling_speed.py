"""Few-step students against the 50-step guided teacher, on this machine.

  python benchmarks/sampling_speed.py [--batches 64 4] [--out=FILE.json]

The samplers have one network (random weights of configs/digits/teacher.py, or
--model=FOLDER), get the same text and noise, and take turns in one process.
Compilation is left out. A value is the median over the turns; CPU time is that
of all threads. "decoded" adds the codec and the copy of the frames to NumPy.

Then a one-step student (of --model, or embedded) makes .mp4 files of prompts:
stage after stage, and as `dollar sample` does, each batch written while the
next one is sampled, with the seconds that a video is in each stage.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dollar_jax.data.videos import video_name, write_video
from dollar_jax.diffusion.timesteps import student_grid
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.programs._sample_clips import write_clips
from dollar_jax.train.config import TrainConfig, from_config_dict

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits" / "teacher.py"
PROMPTS = [f"a {digit} moving up" for digit in range(10)]
PATCH = (4, 8, 8)
"""Frames, rows and columns of pixels under one latent of the digits."""

REQUIRED = {("cpu", 64): 95.0, ("wall", 64): 68.0, ("wall", 4): 68.0}
"""How many times faster one step has to be, by clock and batch."""


@dataclasses.dataclass
class Contender:
  """One way to make a batch of videos, and how long it took.

  Attributes:
    name: what it is called.
    evaluations: of the network, a video.
    run: makes the batch and waits for it.
    calls: calls a turn; enough of them to outlast the clocks' resolution.
    wall: seconds a call, of every turn.
    cpu: the same of all threads' CPU time.
  """

  name: str
  evaluations: int
  run: Callable[[], Any]
  calls: int = 1
  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)

  def warm_up(self, turn_seconds: float) -> None:
    """Compiles, then fits the calls of a turn to `turn_seconds`."""
    self.run()
    self.take_turn()
    self.calls = max(1, round(turn_seconds / self.wall.pop()))
    self.cpu.clear()

  def take_turn(self) -> None:
    """Runs and takes the time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(self.calls):
      self.run()
    self.cpu.append((time.process_time() - cpu) / self.calls)
    self.wall.append((time.perf_counter() - wall) / self.calls)


def random_pipeline(config: TrainConfig) -> Pipeline:
  """The digits' teacher with random weights and a random codec."""
  shape = (2, 4, 4, config.model.in_channels)
  denoiser = make_wan(config.model, config.shift)
  denoiser = denoiser.with_config(dtype=config.dtype, scan=config.scan)
  text = (4, config.model.text_dim)
  pixels = 3 * int(np.prod(PATCH))
  rng = np.random.default_rng(0)

  def draw(*shape: int) -> np.ndarray:
    return rng.normal(0.0, 0.1, shape).astype(np.float32)

  params = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), shape, text))
  params = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
  codec = LinearVAE(
    draw(pixels, shape[-1]), draw(pixels), draw(shape[-1]), PATCH
  )
  return Pipeline(denoiser, params, codec, None, Recipe(shape))


def make_contenders(
  base: Pipeline,
  batch: int,
  text_shape: tuple[int, int],
  teacher: tuple[int, float],
  students: list[int],
  decoded: bool,
) -> list[Contender]:
  """The teacher and each student, all inputs on the device already.

  Args:
    base: network, weights, codec.
    batch: videos a call.
    text_shape: S, D.
    teacher: its steps and guidance scale.
    students: the steps K of each student.
    decoded: whether to go on to uint8 frames on the host.
  """
  rng = np.random.default_rng(1)
  text = rng.standard_normal((batch, *text_shape), np.float32)
  mask = np.ones((batch, text_shape[0]), bool)
  null = np.zeros(text_shape, np.float32), np.zeros(text_shape[0], bool)
  params = jax.device_put(base.params)
  inputs = jax.device_put((text, mask, *null))
  decode, codec = jax.jit(_decode), jax.device_put(base.codec)
  recipes = {f"teacher, {teacher[0]} steps": base.recipe.as_teacher(*teacher)}
  for steps in students:
    grid = student_grid(steps, base.denoiser.shift)
    name = f"student, {steps} step{'s' * (steps > 1)}"
    recipes[name] = base.recipe.as_student(grid)

  def contender(name: str, recipe: Recipe) -> Contender:
    sampler = dataclasses.replace(base, recipe=recipe).sampler
    names = [str(i) for i in range(batch)]
    noises = base.with_params(params, recipe).draw_noise(names, 0)

    def run() -> Any:
      x0 = sampler(params, noises, *inputs)
      if decoded:
        return np.asarray(decode(codec, x0))
      return jax.block_until_ready(x0)

    return Contender(name, recipe.network_evaluations, run)

  return [contender(*item) for item in recipes.items()]


def _decode(codec: Any, x0: jax.Array) -> jax.Array:
  return codec.decode(x0)


def ways_to_files(
  base: Pipeline, batch: int, count: int, notes: list[dict[str, Any]]
) -> dict[str, Callable[[pathlib.Path], None]]:
  """Two ways from prompts to .mp4 files in a folder, the same files.

  One step of the network makes each video.

  Args:
    base: the model, with codec and text encoder.
    batch: videos at once.
    count: batches.
    notes: gets what `write_clips` says of the second way, run by run.
  """
  recipe = base.recipe.as_student(student_grid(1, base.denoiser.shift))
  model = base.with_params(jax.device_put(base.params), recipe)
  prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch * count)]
  names = [video_name(prompt, i) for i, prompt in enumerate(prompts)]
  decode, codec = jax.jit(_decode), jax.device_put(base.codec)

  def embed(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return model.encode([prompts[row] for row in rows])

  def in_turn(folder: pathlib.Path) -> None:
    for start in range(0, len(names), batch):
      rows = list(range(start, start + batch))
      noises = model.draw_noise([names[row] for row in rows], 0)
      x0 = model.sample_latents(*embed(rows), noises)
      clips = np.asarray(decode(codec, x0))
      for row, clip in zip(rows, clips, strict=True):
        write_video(folder / names[row], clip, recipe.fps)

  def overlapped(folder: pathlib.Path) -> None:
    files = [[folder / name] for name in names]
    batches = model.batches(names, embed, model.text_shape, batch)
    notes.append(write_clips(batches, files, recipe.fps))

  return {"stage after stage": in_turn, "overlapped": overlapped}


def writer(name: str, way: Callable[[pathlib.Path], None]) -> Contender:
  """One of `ways_to_files`, into a folder that is then deleted."""

  def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
      way(pathlib.Path(folder))

  return Contender(name, 1, run)


def compare(
  contenders: list[Contender], turns: int, turn_seconds: float
) -> list[dict[str, Any]]:
  """Lets them take turns.

  Returns:
    For each: `name`, `evaluations`, `wall` and `cpu` (median seconds a call),
    `wall_ratio` and `cpu_ratio` (the first one's over its own).
  """
  for contender in contenders:
    contender.warm_up(turn_seconds)
  for _ in range(turns):
    for contender in contenders:
      contender.take_turn()
  rows = []
  for contender in contenders:
    row = {"name": contender.name, "evaluations": contender.evaluations}
    for clock in ("wall", "cpu"):
      row[clock] = statistics.median(getattr(contender, clock))
      row[f"{clock}_ratio"] = (rows[0] if rows else row)[clock] / row[clock]
    rows.append(row)
  return rows


def usual_stages(notes: list[dict[str, Any]]) -> dict[str, float]:
  """Medians over runs of what `write_clips` said, seconds a video."""
  flat = [
    {
      **note["stage_seconds_per_video"],
      "wall": note["wall_seconds_per_video"],
      "overlap": note["overlap"],
    }
    for note in notes[1:]  # the first compiled
  ]
  return {key: statistics.median(f[key] for f in flat) for key in flat[0]}


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
  """Prints what `compare` returns."""
  print(f"\n{title}")
  print(
    f"{'':20}{'calls':>6}{'wall s':>10}{'CPU s':>10}{'wall x':>8}{'CPU x':>8}"
  )
  for row in rows:
    print(
      f"{row['name']:20}{row['evaluations']:6}{row['wall']:10.5f}"
      f"{row['cpu']:10.5f}{row['wall_ratio']:8.1f}{row['cpu_ratio']:8.1f}"
    )


def main() -> None:
  """Prints the table and whether one step is as much faster as required."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", help="a model folder, or 'embedded'")
  parser.add_argument("--batches", nargs="*", type=int, default=[64, 4])
  parser.add_argument("--teacher_steps", type=int, default=50)
  parser.add_argument("--guidance", type=float, default=3.0)
  parser.add_argument("--students", nargs="+", type=int, default=[1, 2, 4])
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument(
    "--turn_seconds", type=float, default=0.5, help="shortest turn"
  )
  parser.add_argument(
    "--files",
    nargs=2,
    type=int,
    default=[16, 8],
    metavar=("SIZE", "COUNT"),
    help="batches that go from prompts to files",
  )
  parser.add_argument("--out", type=pathlib.Path, help="JSON file to write")
  args = parser.parse_args()
  if args.model:
    base = Pipeline.load(args.model)
  else:
    values = runpy.run_path(str(CONFIG))["get_config"]()
    base = random_pipeline(from_config_dict(values))
  text_shape = 4, base.denoiser.config.text_dim
  machine = (
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}, "
    f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
  )
  print(machine)
  results = []
  for batch in args.batches:
    for decoded in (False, True):
      contenders = make_contenders(
        base,
        batch,
        text_shape,
        (args.teacher_steps, args.guidance),
        args.students,
        decoded,
      )
      rows = compare(contenders, args.turns, args.turn_seconds)
      what = "decoded" if decoded else "latents"
      print_rows(f"batch {batch}, {what}", rows)
      results += [{"batch": batch, "output": what, **row} for row in rows]
  size, count = args.files
  notes: list[dict[str, Any]] = []
  named = base if args.model else Pipeline.load("embedded")
  ways = ways_to_files(named, size, count, notes)
  writers = [writer(*item) for item in ways.items()]
  rows = compare(writers, args.turns, args.turn_seconds)
  print_rows(f"{count} batches of {size}, prompts to files", rows)
  stages = usual_stages(notes)
  print(", ".join(f"{key} {value:.5f}" for key, value in stages.items()))
  results += [{"batch": size, "output": "files", **row} for row in rows]
  print()
  required = REQUIRED if args.teacher_steps == 50 else {}
  for (clock, batch), wanted in required.items():
    for row in results:
      one_step = row["evaluations"] == 1 and row["output"] == "latents"
      if one_step and row["batch"] == batch:
        ratio = row[f"{clock}_ratio"]
        verdict = "holds" if ratio >= wanted else "FALLS SHORT"
        print(
          f"batch {batch}: {ratio:.1f} times less {clock} time, "
          f"{wanted:g} required: {verdict}"
        )
  if args.out:
    result = {"machine": machine, "results": results}
    args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
