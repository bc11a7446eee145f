"""Our networks and samplers against diffusers' own, on this machine.

  python -m benchmarks.against_diffusers [--model=wan] [--dtype=float32] \
    [--tasks forward gradients attention …] [--turns=5] [--out=FILE.json]

One process has ours, another diffusers'; both open one folder of random
weights, get the same inputs and take turns, so that one waits while the other
works. Values are medians of wall seconds. Compilation and first calls are left
out. "forward" and "gradients" (of the mean square, for all parameters) are of
a batch of two; "teacher" is 50 guided steps of one video, in diffusers by its
pipeline; "student" is one step of ours, set against diffusers' "teacher". How
far the two results are apart is printed beside, as a share of their norm (of
"gradients", the norms of all of them together are compared). "attention" is of
the tokens to themselves, "feed_forward" the two layers after it, each without
and with its gradients: times 8 blocks, what of "forward" and "gradients" is
theirs.

"decode", "encode" and "decode_gradient" (of the mean square of the pixels, for
the latents) are of the model's autoencoder, one clip, at each of `--bases`, the
widths of its finest resolution:

  python -m benchmarks.against_diffusers [--model=wan] \
    --tasks decode encode decode_gradient [--bases 16 48 96] [--clip 9 96 96]
"""

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dollar_jax.diffusion.process import FlowProcess, VPProcess
from dollar_jax.diffusion.timesteps import teacher_grid
from dollar_jax.interop.diffusers import load_codec
from dollar_jax.interop.networks import template
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.interop.recipe import Recipe
from dollar_jax.interop.schedulers import student_scheduler_to_json
from dollar_jax.models.attention import attention
from dollar_jax.models.cogvideox import CogVideoXConfig, CogVideoXTransformer
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.layers import MLP
from dollar_jax.models.video_vae import NETWORKS, VideoVAE
from dollar_jax.models.wan import WanConfig, WanTransformer
from dollar_jax.models.wan_vae import WanVAEConfig
from dollar_jax.typing import Array

WAN_WORDS = 512
"""Words its pipeline fills a prompt up to."""

TASKS = (
  "forward",
  "gradients",
  "attention",
  "attention_gradients",
  "feed_forward",
  "feed_forward_gradients",
  "teacher",
  "student",
)
CODING = ("decode", "encode", "decode_gradient")
"""Tasks of the autoencoder, at each width asked for."""

STEPS, GUIDANCE = 50, 5.0
WIDTH = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 8}
HIDDEN = 2048
"""Width between the two feed-forward layers."""

LATENT = (8, 32, 32, 16)
"""T, H, W, C: 2,048 tokens in patches of 1, 2, 2."""

MODELS = {
  "wan": Denoiser(
    WanTransformer(WanConfig(ffn_dim=HIDDEN, **WIDTH)),
    FlowProcess(),
    "flow",
    3.0,
  ),
  "cogvideox": Denoiser(
    CogVideoXTransformer(
      CogVideoXConfig(
        time_embed_dim=512, use_rotary_positional_embeddings=True, **WIDTH
      )
    ),
    VPProcess(snr_shift_scale=1.0),
    "v",
  ),
}
AUTOENCODERS = {
  "wan": lambda base: WanVAEConfig(base_dim=base),
  "cogvideox": lambda base: CogVideoXVAEConfig(
    block_out_channels=(base, 2 * base, 2 * base, 4 * base)
  ),
}
"""The published shapes, by the width of the finest resolution."""

ALLOCATOR = {
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_THRESHOLD_": str(2**34),
  "MALLOC_TRIM_THRESHOLD_": str(2**34),
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Has glibc keep memory that was freed: a fifth of XLA's time goes into zeroing
fresh pages otherwise, and some of torch's. Both processes have it."""

PAPER = 278.6
"""Teacher's time over that of the one-step student, arXiv 2412.15689."""


@dataclasses.dataclass
class Inputs:
  """What both sides compute with, of two videos: NumPy, float32."""

  noise: np.ndarray
  text: np.ndarray
  null: np.ndarray
  t: np.ndarray

  @property
  def heads(self) -> list[np.ndarray]:
    """Queries, keys, values [2, L, N, K] of as many tokens as the noise has."""
    rng = np.random.default_rng(1)
    heads = WIDTH["num_attention_heads"], WIDTH["attention_head_dim"]
    shape = 2, self.tokens, *heads
    return [rng.standard_normal(shape, np.float32) for _ in range(3)]

  @property
  def layers(self) -> list[np.ndarray]:
    """Tokens [2, L, D], and two kernels [D, H] and [H, D] of the size of both
    models' feed-forward layers."""
    rng = np.random.default_rng(2)
    width = WIDTH["num_attention_heads"] * WIDTH["attention_head_dim"]
    shapes = (2, self.tokens, width), (width, HIDDEN), (HIDDEN, width)
    drawn = [rng.standard_normal(shape, np.float32) for shape in shapes]
    return [drawn[0], drawn[1] * width**-0.5, drawn[2] * HIDDEN**-0.5]

  @property
  def tokens(self) -> int:
    """L, of one video."""
    return int(np.prod(self.noise.shape[1:4])) // 4

  @classmethod
  def draw(cls, recipe: Recipe, config: Any) -> "Inputs":
    """Random ones; the noise is [2, T, H, W, C], the text [2, S, D]."""
    rng = np.random.default_rng(0)
    words = getattr(config, "max_text_seq_length", WAN_WORDS)
    width = config.text_dim
    shapes = (2, *recipe.latent_shape), (2, words, width), (words, width)
    drawn = [rng.standard_normal(shape, np.float32) for shape in shapes]
    return cls(*drawn, t=np.array([0.9, 0.3], np.float32))


def main(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, prints the table and returns it."""
  print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
  denoiser = MODELS[args.model].with_config(num_layers=args.layers)
  recipe = Recipe(tuple(args.latent), steps=STEPS, guidance=GUIDANCE)
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_random(denoiser, recipe, folder / "model")
    tasks = [task for task in args.tasks if task not in CODING]
    coding = [task for task in args.tasks if task in CODING]
    for base in args.bases if coding else ():
      write_codec(args.model, base, recipe, args.clip, folder / f"{base}")
      tasks += [f"{task}, base {base}" for task in coding]
    sides = {
      name: stack.enter_context(started(serve, folder, args.dtype))
      for name, serve in (("ours", serve_ours), ("diffusers", serve_theirs))
    }
    tasks = {
      task: measure(task, sides, turns_of(task, args.turns), folder)
      for task in tasks
    }
  packages = ("jax", "jaxlib", "torch", "diffusers")
  table = {
    "model": args.model,
    "dtype": args.dtype,
    "tokens": int(np.prod(recipe.latent_shape[:3])) // 4,
    "versions": {name: metadata.version(name) for name in packages},
    "tasks": tasks,
  }
  if coding:
    table["clip"] = "x".join(map(str, args.clip))
  if {"teacher", "student"} <= tasks.keys():
    seconds = tasks["teacher"]["diffusers"], tasks["student"]["ours"]
    table["speed_up"] = seconds[0] / seconds[1]
  print_table(table)
  return table


def write_random(
  denoiser: Denoiser, recipe: Recipe, folder: pathlib.Path
) -> None:
  """A model folder of random weights of the size that trained ones have."""
  rng = np.random.default_rng(1)

  def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    scale = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.1
    return scale * rng.standard_normal(leaf.shape, np.float32)

  params = jax.tree.map(draw, template(denoiser.module))
  Pipeline(denoiser, params, None, None, recipe).save(folder)


def write_codec(
  model: str,
  base: int,
  recipe: Recipe,
  clip: Sequence[int],
  folder: pathlib.Path,
) -> None:
  """The same of an autoencoder, with a clip and latents to code in it."""
  rng = np.random.default_rng(2)
  config = AUTOENCODERS[model](base)
  network = NETWORKS[type(config)]

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    fans = math.prod(leaf.shape[:-1])
    scale = fans**-0.5 if len(leaf.shape) > 1 else 0.1
    mean = 1.0 if path[-1].key == "weight" else 0.0  # of a norm
    return mean + scale * rng.standard_normal(leaf.shape, np.float32)

  params = jax.tree.map_with_path(draw, network.shapes(config))
  codec = VideoVAE(params, config)
  denoiser = MODELS[model].with_config(num_layers=1)
  weights = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), template(denoiser.module)
  )
  Pipeline(denoiser, weights, codec, None, recipe).save(folder)
  latents = rng.standard_normal((1, *codec.latent_shape(*clip)), np.float32)
  frames = rng.uniform(-1.0, 1.0, (1, *clip, 3)).astype(np.float32)
  np.savez(folder / "given.npz", latents=latents, frames=frames)


@contextlib.contextmanager
def started(
  serve: Callable, folder: pathlib.Path, dtype: str
) -> Iterator[Connection]:
  """A connection to `serve(folder, dtype)` in a process of its own."""
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe()
  process = context.Process(
    target=answer, args=(serve, folder, dtype, there), daemon=True
  )
  with mock.patch.dict(os.environ, ALLOCATOR):
    process.start()
  there.close()
  try:
    yield here
  finally:
    here.close()
    process.join(5.0)
    process.kill()


def answer(
  serve: Callable, folder: pathlib.Path, dtype: str, line: Connection
) -> None:
  """Does the tasks that the line names, and says how long each took."""
  tasks = serve(folder, dtype)
  with contextlib.suppress(EOFError):
    while True:
      task, file = line.recv()
      start = time.perf_counter()
      out = tasks[task]() if task in tasks else None
      seconds = time.perf_counter() - start
      if file is not None and out is not None:
        np.save(file, out)
      line.send(None if out is None else seconds)


def turns_of(task: str, turns: int) -> int:
  """A whole sampling is long, and steady for it."""
  return max(1, turns // 3) if task == "teacher" else turns


def measure(
  task: str, sides: dict[str, Connection], turns: int, folder: pathlib.Path
) -> dict[str, float]:
  """Median seconds of each side, and how far their results are apart."""
  seconds = {name: [] for name in sides}
  for turn in tqdm(range(turns + 1), desc=task, disable=None):
    for name, line in sides.items():
      line.send((task, folder / f"{name}.npy" if turn == 0 else None))
      if (taken := line.recv()) is not None and turn > 0:
        seconds[name].append(taken)
      time.sleep(0.3)  # idle threads of the one spin for a while
  result = {k: statistics.median(s) for k, s in seconds.items() if s}
  if len(result) == len(sides):
    ours, theirs = (np.load(folder / f"{name}.npy") for name in sides)
    apart = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    result["apart"] = float(apart)
  return result


def serve_ours(folder: pathlib.Path, dtype: str) -> dict[str, Callable]:
  """The tasks by dollar_jax."""
  model = Pipeline.load(folder / "model")
  denoiser = model.denoiser.with_config(dtype=dtype)
  params = jax.tree.map(lambda x: x.astype(dtype), model.params)
  teacher = dataclasses.replace(model, denoiser=denoiser, params=params)
  student = teacher.with_params(params, model.recipe.as_student([1.0]))
  given = Inputs.draw(model.recipe, denoiser.config)
  noise, text, null, t = jax.device_put(dataclasses.astuple(given))
  mask = jnp.ones(text.shape[:2], bool)
  null_prompt = {"null_text": null, "null_mask": mask[0]}

  @jax.jit
  def forward(params):
    return denoiser.raw(params, noise, t, text, mask)

  @jax.jit
  def gradients(params):
    loss = jax.grad(lambda params: jnp.mean(jnp.square(forward(params))))
    return optax.global_norm(loss(params))

  heads = [jnp.asarray(x, dtype) for x in given.heads]
  attend = jax.jit(attention)

  @jax.jit
  def attend_gradients(*heads):
    loss = jax.grad(lambda x: jnp.mean(jnp.square(attention(*x))))
    return optax.global_norm(loss(heads))

  layers = [jnp.asarray(x, dtype) for x in given.layers]

  @jax.jit
  def feed(x, up, down):
    mlp = MLP(*down.shape, dtype=x.dtype)
    params = {
      name: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], dtype)}
      for name, kernel in (("up", up), ("down", down))
    }
    return mlp.apply({"params": params}, x)

  @jax.jit
  def feed_gradients(*layers):
    loss = jax.grad(lambda x: jnp.mean(jnp.square(feed(*x))))
    return optax.global_norm(loss(layers))

  def sample(model: Pipeline) -> Array:
    inputs = text[:1], mask[:1], noise[None, :1]
    return model.sample_latents(*inputs, null_prompt)

  tasks = {
    "forward": lambda: forward(params),
    "gradients": lambda: gradients(params),
    "attention": lambda: attend(*heads),
    "attention_gradients": lambda: attend_gradients(*heads),
    "feed_forward": lambda: feed(*layers),
    "feed_forward_gradients": lambda: feed_gradients(*layers),
    "teacher": lambda: sample(teacher),
    "student": lambda: sample(student),
  }
  for given_file in folder.glob("*/given.npz"):
    base = given_file.parent.name
    for task, code in coding_of_ours(given_file, dtype).items():
      tasks[f"{task}, base {base}"] = code
  return {
    name: lambda task=task: np.asarray(task(), np.float32)
    for name, task in tasks.items()
  }


def coding_of_ours(given: pathlib.Path, dtype: str) -> dict[str, Callable]:
  """The tasks of one autoencoder by dollar_jax."""
  codec = load_codec(given.parent)
  network = NETWORKS[type(codec.size)]
  params = jax.tree.map(lambda x: x.astype(dtype), codec.params)
  with np.load(given) as arrays:
    frames = jnp.asarray(arrays["frames"], dtype)
    latents = jnp.asarray(arrays["latents"], dtype)

  @jax.jit
  def encode(params, frames):
    return network.encode(codec.size, params["encoder"], frames)

  @jax.jit
  def decode(params, latents):
    return network.decode(codec.size, params["decoder"], latents)

  @jax.jit
  def gradient(params, latents):
    def loss(latents):
      return jnp.mean(jnp.square(decode(params, latents)))

    return jax.grad(loss)(latents)

  return {
    "encode": lambda: encode(params, frames),
    "decode": lambda: decode(params, latents),
    "decode_gradient": lambda: gradient(params, latents),
  }


def serve_theirs(folder: pathlib.Path, dtype: str) -> dict[str, Callable]:
  """The tasks by diffusers, in its order of axes."""
  import diffusers  # the other process has no use for it
  import torch
  from torch.nn import functional

  from benchmarks import in_diffusers

  kind = getattr(torch, dtype)
  pipe = in_diffusers.open_pipeline(folder / "model", dtype=kind)
  axis = in_diffusers.channel_axis(pipe)
  model = Pipeline.load(folder / "model")
  given = Inputs.draw(model.recipe, model.denoiser.config)
  noise = torch.from_numpy(given.noise).to(kind).movedim(-1, axis)
  text = torch.from_numpy(given.text).to(kind)
  clock = torch.from_numpy(np.array(model.denoiser.clock(given.t)))
  rotary = {}
  if isinstance(pipe, diffusers.CogVideoXPipeline):
    time, rows, columns, _ = model.recipe.latent_shape
    rotary["image_rotary_emb"] = pipe._prepare_rotary_positional_embeddings(
      8 * rows, 8 * columns, time, "cpu"
    )
  else:  # its own time steps end elsewhere; these are ours
    grid = teacher_grid(model.recipe.steps, model.denoiser.shift)[:-1]
    spaced = student_scheduler_to_json(model.denoiser, grid, 0.0)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
      spaced
    )

  def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.float().movedim(axis, -1).numpy()

  def network() -> torch.Tensor:
    return pipe.transformer(
      noise, encoder_hidden_states=text, timestep=clock, **rotary
    ).sample

  @torch.no_grad()
  def forward() -> np.ndarray:
    return channels_last(network())

  def gradients() -> np.ndarray:
    pipe.transformer.zero_grad()
    network().float().square().mean().backward()
    weights = pipe.transformer.parameters()
    return np.array(torch.nn.utils.get_total_norm(w.grad for w in weights))

  heads = [torch.from_numpy(x).to(kind).transpose(1, 2) for x in given.heads]
  for x in heads:
    x.requires_grad_()

  @torch.no_grad()
  def attend() -> np.ndarray:
    out = functional.scaled_dot_product_attention(*heads)
    return out.transpose(1, 2).float().numpy()

  def attend_gradients() -> np.ndarray:
    loss = functional.scaled_dot_product_attention(*heads).square().mean()
    norms = torch.autograd.grad(loss, heads)
    return np.array(torch.nn.utils.get_total_norm(norms).float())

  layers = [torch.from_numpy(x).to(kind) for x in given.layers]
  layers[1:] = [kernel.T.contiguous() for kernel in layers[1:]]
  biases = [torch.zeros(len(kernel), dtype=kind) for kernel in layers[1:]]
  for x in (*layers, *biases):
    x.requires_grad_()

  def two_layers() -> torch.Tensor:
    x, up, down = layers
    hidden = functional.linear(x, up, biases[0])
    hidden = functional.gelu(hidden, approximate="tanh")
    return functional.linear(hidden, down, biases[1])

  @torch.no_grad()
  def feed() -> np.ndarray:
    return two_layers().float().numpy()

  def feed_gradients() -> np.ndarray:
    norms = torch.autograd.grad(two_layers().square().mean(), layers)
    return np.array(torch.nn.utils.get_total_norm(norms).float())

  def teacher() -> np.ndarray:
    inputs = given.noise[None, :1], given.text[:1], given.null
    return in_diffusers.sample(pipe, model.recipe, *inputs)

  tasks = {
    "forward": forward,
    "gradients": gradients,
    "attention": attend,
    "attention_gradients": attend_gradients,
    "feed_forward": feed,
    "feed_forward_gradients": feed_gradients,
    "teacher": teacher,
  }
  for given_file in folder.glob("*/given.npz"):
    base = given_file.parent.name
    for task, code in coding_of_theirs(given_file, dtype).items():
      tasks[f"{task}, base {base}"] = code
  return tasks


def coding_of_theirs(given: pathlib.Path, dtype: str) -> dict[str, Callable]:
  """The tasks of one autoencoder by diffusers."""
  import diffusers
  import torch

  kind = getattr(torch, dtype)
  vae = diffusers.AutoModel.from_pretrained(
    str(given.parent / "vae"), torch_dtype=kind
  ).requires_grad_(False)
  with np.load(given) as arrays:
    frames, latents = (
      torch.from_numpy(arrays[name]).to(kind).movedim(-1, 1).contiguous()
      for name in ("frames", "latents")
    )

  def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.float().movedim(1, -1).numpy()

  @torch.no_grad()
  def encode() -> np.ndarray:
    return channels_last(vae.encode(frames).latent_dist.mean)

  @torch.no_grad()
  def decode() -> np.ndarray:
    return channels_last(vae.decode(latents).sample)

  def gradient() -> np.ndarray:
    z = latents.clone().requires_grad_()
    loss = vae.decode(z).sample.float().square().mean()
    return channels_last(torch.autograd.grad(loss, z)[0])

  return {"encode": encode, "decode": decode, "decode_gradient": gradient}


def print_table(table: dict[str, Any]) -> None:
  """Prints seconds and ratios."""
  head = {k: v for k, v in table.items() if k not in ("tasks", "speed_up")}
  print(", ".join(f"{k} {v}" for k, v in head.items()))
  print(
    "task                       ours (s)  diffusers (s)  diffusers/ours  apart"
  )
  for task, row in table["tasks"].items():
    if "diffusers" in row:
      ratio = row["diffusers"] / row["ours"]
      print(
        f"{task:<25}{row['ours']:10.3f}{row['diffusers']:15.3f}"
        f"{ratio:16.3f}{row['apart']:7.0e}"
      )
    else:
      print(f"{task:<25}{row['ours']:10.3f}")
  if "speed_up" in table:
    print(
      f"one step of ours against diffusers' {STEPS} guided steps: "
      f"{table['speed_up']:.1f} times (the paper, of its own: {PAPER})"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """Reads the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", choices=MODELS, default="wan")
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument(
    "--tasks", nargs="+", choices=(*TASKS, *CODING), default=TASKS
  )
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument(
    "--latent", type=int, nargs=4, default=LATENT, metavar="N", help="T H W C"
  )
  parser.add_argument(
    "--bases", type=int, nargs="+", default=(16, 48, 96), metavar="N"
  )
  parser.add_argument(
    "--clip", type=int, nargs=3, default=(9, 96, 96), metavar="N", help="F H W"
  )
  parser.add_argument("--out", help="file to write the table to, as JSON")
  return parser.parse_args(argv)


if __name__ == "__main__":
  flags = parse()
  result = main(flags)
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(result, indent=2) + "\n")
