"""Samples videos, for `dollar sample`."""

import collections
import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data.videos import video_name
from dollar_jax.diffusion.timesteps import student_grid
from dollar_jax.evaluation.vbench_suite import read_suite
from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.folders import write_json
from dollar_jax.interop.pipeline import Embed, Pipeline
from dollar_jax.interop.text_encoders import WordEncoder
from dollar_jax.parallel.machine import MACHINE, describe
from dollar_jax.programs._flags import parse_video_size
from dollar_jax.programs._sample_clips import write_clips
from dollar_jax.train.models import open_model

_CHECKED = 64
"""Prompts whose words are looked up at once."""


def read_prompts(value: str | None) -> list[str]:
  """The prompts of a text, or of a file with one a line.

  Raises:
    ValueError: if there is none, or one is empty.
  """
  if value is not None and os.path.isfile(value):
    try:
      prompts = Path(value).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
      raise ValueError(f"{value} is no UTF-8 text; convert it") from None
    while prompts and not prompts[-1].strip():
      prompts.pop()  # the newline at the end of a file
  else:
    prompts = [] if value is None else [value]
  prompts = [prompt.strip() for prompt in prompts]
  if not prompts:
    raise ValueError("no prompt given; use --prompts=TEXT or --prompts=FILE")
  for i, prompt in enumerate(prompts):
    if not prompt:
      raise ValueError(
        f"prompt {i + 1} of {len(prompts)} is empty; write what the video "
        "should show"
      )
  return prompts


def choose_prompts(
  prompts: str | None, suite: str | None, samples: int | None
) -> tuple[list[str], list[int]]:
  """The prompts that the flags of these names ask for, and videos of each.

  Raises:
    ValueError: if there is none, or both kinds are given.
  """
  if suite is None:
    texts = read_prompts(prompts)
    return texts, [samples or 1] * len(texts)
  if prompts is not None:
    raise ValueError("--prompts and --suite exclude each other; give one")
  wanted = read_suite(suite)
  return list(wanted), [samples or count for count in wanted.values()]


def choose_sampler(
  model: Pipeline,
  steps: int | None,
  guidance: float | None,
  negative_prompt: str | None = None,
) -> Pipeline:
  """The model with the sampler that the flags of these names ask for.

  Raises:
    ValueError: if steps is below 1, or a negative prompt would do nothing.
  """
  recipe = model.recipe
  if guidance is not None or (steps is not None and not recipe.grid):
    scale = recipe.guidance if guidance is None else guidance
    steps = recipe.steps if steps is None else steps
    recipe = recipe.as_teacher(steps, scale)
  elif steps is not None and steps != recipe.steps:
    recipe = recipe.as_student(student_grid(steps, model.denoiser.shift))
  if negative_prompt is not None:
    if recipe.guidance == 1.0:
      raise ValueError(
        "--negative_prompt does nothing without guidance; give --guidance=W, "
        "above 1, too"
      )
    recipe = dataclasses.replace(recipe, negative_prompt=negative_prompt)
  return model.with_params(model.params, recipe)


def choose_size(model: Pipeline, size: str | None) -> Pipeline:
  """The model that makes videos of `--video_size`.

  Raises:
    ValueError: if it is no size, or one that the codec cannot decode.
  """
  if size is None:
    return model
  frames, height, width = parse_video_size(size)
  if model.codec is None:
    raise ValueError(
      f"--video_size={size} needs the model's autoencoder, which says how "
      "large its latents are; copy vae/ into the folder"
    )
  shape = model.codec.latent_shape(frames, height, width)
  return model.with_params(model.params, model.recipe.of_size(shape))


def main(values: flags.FlagValues) -> None:
  """Samples and writes the videos.

  Raises:
    ValueError: for prompts, shapes or settings that do not fit the model.
  """
  prompts, counts = choose_prompts(
    values.prompts, values.suite, values.samples_per_prompt
  )
  if values.text_embeddings and values.negative_prompt is not None:
    raise ValueError(
      "--negative_prompt is not read where --text_embeddings is given; put its "
      f"embedding into {values.text_embeddings} as null_text and null_mask"
    )
  model = choose_size(open_model(values.model), values.video_size)
  model = choose_sampler(
    model, values.steps, values.guidance, values.negative_prompt
  )
  embed, text_shape, null = _embedder(model, prompts, values.text_embeddings)
  jobs = [(p, i) for p, count in enumerate(counts) for i in range(count)]
  names = [video_name(prompts[p], i) for p, i in jobs]
  _check_unique(names)
  initial = _read_noise(values.initial_latents, model, len(jobs))
  out = on_disk(values.out)
  out.mkdir(parents=True, exist_ok=True)
  files = [_files(out / name, model, values.save_latents) for name in names]
  todo = [n for n in range(len(jobs)) if not all(f.exists() for f in files[n])]
  size = min(values.batch_size, max(len(todo), 1))
  batches = model.batches(
    [names[n] for n in todo],
    lambda rows: embed([jobs[todo[row]][0] for row in rows]),
    text_shape,
    size,
    values.seed,
    initial=None if initial is None else initial[todo],
    null_prompt=null,
  )
  bar = tqdm(
    batches,
    desc="sample",
    total=-(-len(todo) // size),
    unit="batch",
    disable=None,
  )
  speed = write_clips(bar, [files[n] for n in todo], model.recipe.fps)
  _write_metadata(
    out, [(f[0], prompts[p]) for f, (p, _) in zip(files, jobs, strict=True)]
  )
  if speed:
    write_json(out / MACHINE, _settings(values, model, size) | speed)
  print(f"{len(jobs)} videos in {out} ({len(jobs) - len(todo)} were there)")


def _settings(
  values: flags.FlagValues, model: Pipeline, size: int
) -> dict[str, Any]:
  """How the clips were made, and on what, for those who compare folders."""
  recipe = model.recipe
  return {
    "model": values.model,
    "seed": values.seed,
    "steps": recipe.steps,
    "guidance": recipe.guidance,
    "network_evaluations": recipe.network_evaluations,
    "batch_size": size,
    **describe(),
  }


def _check_unique(names: list[str]) -> None:
  for name, count in collections.Counter(names).items():
    if count > 1:
      raise ValueError(
        f"{count} videos would be called {name!r}; give every prompt once, and "
        "--samples_per_prompt=N for N videos of each"
      )


def _files(video: Path, model: Pipeline, save_latents: bool) -> list[Path]:
  """What is written of one video; without a codec, its latents only."""
  latents = video.with_name(video.name.removesuffix(".mp4") + ".npy")
  if model.codec is None:
    return [latents]
  return [video, latents] if save_latents else [video]


def _write_metadata(out: Path, rows: list[tuple[Path, str]]) -> None:
  """Hugging Face's video-folder index, so that others read the prompts."""
  lines = [json.dumps({"file_name": f.name, "text": t}) + "\n" for f, t in rows]
  (out / "metadata.jsonl").write_text("".join(lines))


def _embedder(
  model: Pipeline, prompts: list[str], file: str | None
) -> tuple[Embed, tuple[int, int], dict | None]:
  """What embeds prompts by the batch, S and D of that, and the null prompt.

  All at once would fill the memory, of a whole suite.
  """
  if file is None:
    shape = model.text_shape
    if isinstance(model.text_encoder, WordEncoder):  # may not know a word
      for start in range(0, len(prompts), _CHECKED):
        model.encode(prompts[start : start + _CHECKED])
    return (
      lambda rows: model.encode([prompts[row] for row in rows]),
      shape,
      None,
    )
  arrays = _load(file, ".npz")
  tokens = arrays["text"].shape[1] if np.ndim(arrays.get("text")) == 3 else 0
  width = model.denoiser.config.text_dim
  want = {
    "text": (len(prompts), tokens, width),
    "text_mask": (len(prompts), tokens),
    "null_text": (tokens, width),
    "null_mask": (tokens,),
  }
  shapes = {name: array.shape for name, array in arrays.items()}
  if not tokens or any(shapes.get(name, n) != n for name, n in want.items()):
    raise ValueError(
      f"{file} has arrays of shapes {shapes}; {len(prompts)} prompts for this "
      f"model need text [{len(prompts)}, S, {width}], and can have text_mask "
      f"[{len(prompts)}, S], null_text [S, {width}] and null_mask [S]"
    )
  guidance = model.recipe.guidance
  if guidance != 1.0 and "null_text" not in arrays:
    raise ValueError(
      f"{file} has no array null_text, the empty prompt's embedding, which "
      f"guidance {guidance} needs; add it, or sample with --guidance=1"
    )
  text = arrays["text"].astype(np.float32)
  mask = arrays.get("text_mask", np.ones(text.shape[:2])).astype(bool)
  null_text = arrays.get("null_text", np.zeros_like(text[0]))
  null_mask = arrays.get("null_mask", np.ones_like(mask[0]))
  null = {
    "null_text": null_text.astype(np.float32),
    "null_mask": null_mask.astype(bool),
  }
  return lambda rows: (text[rows], mask[rows]), (tokens, width), null


def _read_noise(
  file: str | None, model: Pipeline, count: int
) -> np.ndarray | None:
  if file is None:
    return None
  noise = _load(file, ".npy")
  want = (count, *model.recipe.latent_shape)
  if np.shape(noise) != want:
    raise ValueError(
      f"{file} has shape {np.shape(noise)}; {count} videos of this model need "
      f"{want}"
    )
  return np.asarray(noise, np.float32)


def _load(file: str, kind: str) -> Any:
  """The array of an .npy file, or the arrays of an .npz file by name."""
  try:
    with open(file, "rb") as stream:
      content = np.load(stream, allow_pickle=False)
      if isinstance(content, np.ndarray) == (kind == ".npz"):
        raise ValueError("it is of another kind")
      return dict(content) if kind == ".npz" else content
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{file} is no readable {kind} file: {error}") from None
