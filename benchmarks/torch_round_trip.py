"""PyTorch in, PyTorch out: teachers of diffusers, distilled, sampled there.

  python -m benchmarks.torch_round_trip --out=runs/round_trip

A Wan and a CogVideoX transformer of diffusers (about 1.5 M parameters) learn
moving digits in plain torch and are saved by diffusers. `dollar train` distils
each into four steps. The students' folders are opened by diffusers, which
samples the clips that are judged; ours are made from the same noise beside
them. OUT then holds the models, round_trip.json and round_trip.png. The rows of
the picture are, for Wan and then for CogVideoX: the teacher's 50 guided steps
in diffusers, the student's four there, and the student's four here. Some ten
minutes on two cores.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from benchmarks import in_diffusers
from dollar_jax import cli
from dollar_jax.data import moving_digits
from dollar_jax.evaluation.mosaic import mosaic
from dollar_jax.interop import load
from dollar_jax.interop.pipeline import EMBEDDED, Pipeline
from dollar_jax.interop.recipe import Recipe
from dollar_jax.programs._digits_panel import DigitsPanel

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = Recipe((2, 4, 4, 32), steps=50, guidance=2.0)
SIZE = {
  "num_attention_heads": 4,
  "in_channels": 32,
  "out_channels": 32,
  "num_layers": 4,
}
COLUMNS, FRAMES = 6, (1, 3, 5)
"""Clips of the picture, and which of their frames it shows."""


@dataclasses.dataclass
class Kind:
  """A family of teachers: its parts in diffusers, and what it learns.

  Attributes:
    pipeline: the class that samples it.
    network: a fresh transformer.
    scheduler: its noise process.
    channels: the axis of the channels, behind the batch.
    flags: of `dollar train`.
  """

  pipeline: type
  network: torch.nn.Module
  scheduler: Any
  channels: int
  flags: dict[str, Any]

  def noised(
    self, x: torch.Tensor, noise: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents at random times, those times, and what is to be predicted."""
    if self.pipeline is diffusers.CogVideoXPipeline:
      clock = torch.randint(0, 1000, (len(x),))
      x_t = self.scheduler.add_noise(x, noise, clock)
      return x_t, clock, self.scheduler.get_velocity(x, noise, clock)
    t = torch.rand(len(x)).reshape(-1, 1, 1, 1, 1)
    return (1 - t) * x + t * noise, 1000.0 * t.flatten(), noise - x


def kinds() -> dict[str, Kind]:
  """The two families, with random weights."""
  wan = diffusers.WanTransformer3DModel(
    patch_size=(1, 1, 1),
    attention_head_dim=32,
    text_dim=64,
    freq_dim=128,
    ffn_dim=512,
    **SIZE,
  )
  cogvideox = diffusers.CogVideoXTransformer3DModel(
    patch_size=1,
    attention_head_dim=32,
    time_embed_dim=128,
    text_embed_dim=64,
    max_text_seq_length=4,
    sample_width=4,
    sample_height=4,
    sample_frames=5,
    use_rotary_positional_embeddings=False,
    **SIZE,
  )
  return {
    "wan": Kind(
      diffusers.WanPipeline,
      wan,
      diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
      1,
      {"distill.grid_shift": 5.0},
    ),
    "cogvideox": Kind(
      diffusers.CogVideoXPipeline,
      cogvideox,
      diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
      ),
      2,
      {"distill.grid_shift": 1.0},
    ),
  }


def train_teacher(kind: Kind, base: Pipeline, steps: int, name: str) -> None:
  """Teaches the network the digits, in torch alone."""
  clips = moving_digits.make_clips("train", 16000)
  latents = np.concatenate(
    [np.asarray(base.codec.encode(x)) for x in np.split(clips.frames, 16)]
  )
  latents = torch.from_numpy(latents).movedim(-1, kind.channels)
  texts = torch.from_numpy(base.encode(moving_digits.all_captions())[0])
  captions = torch.from_numpy(4 * clips.digits + clips.directions)
  optimizer = torch.optim.AdamW(kind.network.parameters(), lr=2e-3)
  schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
  for _ in tqdm(range(steps), desc=f"{name} in torch", disable=None):
    rows = torch.randint(0, len(latents), (64,))
    x, text = latents[rows], texts[captions[rows]]
    text = text * (torch.rand(64, 1, 1) > 0.1)  # the rest has no caption
    x_t, clock, wanted = kind.noised(x, torch.randn_like(x))
    out = kind.network(x_t, encoder_hidden_states=text, timestep=clock).sample
    optimizer.zero_grad()
    functional.mse_loss(out, wanted).backward()
    optimizer.step()
    schedule.step()


def distil(kind: Kind, base: Pipeline, out: pathlib.Path, steps: int) -> None:
  """Saves the pipeline by diffusers, adds codec and words, distils it."""
  absent = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
  kind.pipeline(
    transformer=kind.network, scheduler=kind.scheduler, **absent
  ).save_pretrained(out / "torch")
  denoiser, params = load(out / "torch")
  parts = base.codec, base.text_encoder, RECIPE
  Pipeline(denoiser, params, *parts).save(out / "teacher")
  flags = {
    "teacher": out / "teacher",
    "steps": steps,
    "optimizer.warmup_steps": min(10, steps - 1),
    "score_optimizer.warmup_steps": min(10, steps - 1),
    "distill.fresh_noise": 1.0,  # diffusers has all fresh, or none
    "distill.guidance": RECIPE.guidance,
    **kind.flags,
  }
  status = cli.main(
    [
      "train",
      f"--config={ROOT}/configs/digits/student.py",
      f"--workdir={out / 'run'}",
      *(f"--config.{name}={value}" for name, value in flags.items()),
    ]
  )
  if status:
    sys.exit(status)


def sample_in_diffusers(
  model: Pipeline, folder: pathlib.Path, prompts: list[str], noises: np.ndarray
) -> np.ndarray:
  """Latents [B, T, H, W, C] of our model's folder, opened by diffusers."""
  pipe = in_diffusers.open_pipeline(folder)
  text, null = model.encode(prompts)[0], model.encode([""])[0][0]
  return in_diffusers.sample(pipe, model.recipe, noises, text, null)


def round_trip(
  name: str, kind: Kind, args: argparse.Namespace, panel: DigitsPanel
) -> tuple[dict[str, Any], np.ndarray]:
  """All of one family: its table, and its rows of the picture."""
  base, out = Pipeline.load(EMBEDDED), args.out / name
  train_teacher(kind, base, args.teacher_steps, name)
  distil(kind, base, out, args.steps)
  captions = moving_digits.all_captions()
  prompts = [captions[i % len(captions)] for i in range(args.samples)]
  teacher = Pipeline.load(out / "teacher")
  student = Pipeline.load(out / "run" / "model")
  names = [f"{prompt}-{i}" for i, prompt in enumerate(prompts)]
  noises = np.array(student.draw_noise(names, args.seed))
  there = sample_in_diffusers(student, out / "run" / "model", prompts, noises)
  here = np.asarray(student.sample_latents(*student.encode(prompts), noises))
  latents = {
    "teacher, diffusers": sample_in_diffusers(
      teacher, out / "teacher", prompts, noises[:1]
    ),
    "student, diffusers": there,
    "student, dollar_jax": here,
  }
  clips = {k: np.asarray(base.codec.decode(x)) for k, x in latents.items()}
  table = {k: panel(x, prompts) for k, x in clips.items()}
  table["largest difference of latents"] = float(np.abs(there - here).max())
  chosen = np.linspace(0, len(captions), COLUMNS, endpoint=False).astype(int)
  rows = [
    np.concatenate([x[i, list(FRAMES), None] for i in chosen])
    for x in clips.values()
  ]
  return table, np.array(rows)


def main(args: argparse.Namespace) -> dict[str, Any]:
  """Makes both round trips; prints, writes and returns the table."""
  args.out.mkdir(parents=True)
  torch.manual_seed(args.seed)
  panel, tables, rows = DigitsPanel(), {}, []
  for name, kind in kinds().items():
    tables[name], pictures = round_trip(name, kind, args, panel)
    rows.extend(pictures)
  picture = mosaic(np.array(rows), scale=2)[0]
  Image.fromarray(picture).save(args.out / "round_trip.png")
  text = json.dumps(tables, indent=2) + "\n"
  (args.out / "round_trip.json").write_text(text)
  for name, table in tables.items():
    for row, figures in table.items():
      if isinstance(figures, dict):
        shown = f"{figures['caption_accuracy']:.3f}  {figures['frechet']:.2f}"
        print(f"{name:<10} {row:<20} captions, Fréchet: {shown}")
      else:
        print(f"{name:<10} {row}: {figures:.1e}")
  return tables


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """Reads the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--teacher_steps", type=int, default=700)
  parser.add_argument("--steps", type=int, default=150)
  parser.add_argument("--samples", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  return parser.parse_args(argv)


if __name__ == "__main__":
  main(parse())
