"""Sample videos from a model, a finished run or the embedded teacher.

  dollar sample --model=embedded --prompts="a 3 moving left" --out=clips
  dollar sample --model=runs/student --prompts=prompts.txt --seed=1 --out=clips
  dollar sample --model=embedded --steps=50 --guidance=3 --prompts=... --out=...

Prompts are a text, or a file with one a line. Videos are named
{prompt}-{index}.mp4, as VBench expects them; those already there are kept.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from dollar_jax.data.videos import video_name, write_video
from dollar_jax.diffusion.timesteps import student_grid
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.train.runs import open_model

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "model",
  "embedded",
  "Model folder, run folder, or 'embedded'.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "prompts", None, "A prompt, or a file with one a line.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "steps", None, "Network steps; the model's own if absent.", flag_values=FLAGS
)
flags.DEFINE_float(
  "guidance",
  None,
  "Guidance scale w of u + w (c - u): samples as a teacher, along the ODE.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "samples_per_prompt", 1, "Videos a prompt.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=FLAGS)
flags.DEFINE_integer(
  "batch_size", 16, "Videos at a time.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
  "out", None, "Folder of the videos.", required=True, flag_values=FLAGS
)
flags.DEFINE_bool(
  "save_latents", False, "Also write each latent as .npy.", flag_values=FLAGS
)
flags.DEFINE_string(
  "initial_latents",
  None,
  "Start from this noise instead: .npy of [N, T, H, W, C].",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "text_embeddings",
  None,
  "Embeddings of the prompts, where the model has no text encoder: .npz with "
  "text [N, S, D], text_mask [N, S] and, for guidance, null_text, null_mask.",
  flag_values=FLAGS,
)


def read_prompts(value: str | None) -> list[str]:
  """The prompts of a text, or of a file with one a line.

  Raises:
    ValueError: if there is none, or one is empty.
  """
  if value is not None and os.path.isfile(value):
    prompts = Path(value).read_text().splitlines()
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


def choose_sampler(
  model: Pipeline, steps: int | None, guidance: float | None
) -> Pipeline:
  """The model with the sampler that `--steps` and `--guidance` ask for.

  Raises:
    ValueError: if steps is below 1.
  """
  recipe = model.recipe
  if guidance is not None or (steps is not None and not recipe.grid):
    scale = recipe.guidance if guidance is None else guidance
    steps = recipe.steps if steps is None else steps
    recipe = recipe.as_teacher(steps, scale)
  elif steps is not None and steps != recipe.steps:
    recipe = recipe.as_student(student_grid(steps, model.denoiser.shift))
  return model.with_params(model.params, recipe)


def main(values: flags.FlagValues) -> None:
  """Samples and writes the videos.

  Raises:
    ValueError: for prompts, shapes or settings that do not fit the model.
  """
  prompts = read_prompts(values.prompts)
  model = choose_sampler(
    open_model(values.model), values.steps, values.guidance
  )
  text, mask, null = _embed(model, prompts, values.text_embeddings)
  jobs = [
    (p, i) for p in range(len(prompts)) for i in range(values.samples_per_prompt)
  ]
  initial = _read_noise(values.initial_latents, model, len(jobs))
  out = Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  names = [video_name(prompts[p], i) for p, i in jobs]
  todo = [n for n in range(len(jobs)) if not (out / names[n]).exists()]
  size = min(values.batch_size, max(len(todo), 1))
  decode = jax.jit(lambda codec, x0: codec.decode(x0))
  for start in tqdm(range(0, len(todo), size), desc="sample", unit="batch"):
    rows = todo[start : start + size]
    padded = rows + rows[-1:] * (size - len(rows))  # one shape, one compile
    noises = model.draw_noise([names[n] for n in padded], values.seed)
    if initial is not None:
      noises = noises.at[0].set(initial[jnp.array(padded)])
    which = [jobs[n][0] for n in padded]
    x0 = model.sample_latents(text[which], mask[which], noises, null)
    frames = decode(model.codec, x0) if model.codec is not None else None
    for i, n in enumerate(rows):
      if values.save_latents or frames is None:
        np.save(out / names[n].replace(".mp4", ".npy"), np.asarray(x0[i]))
      if frames is not None:
        write_video(out / names[n], np.asarray(frames[i]), model.recipe.fps)
  _write_metadata(out, [(names[n], prompts[jobs[n][0]]) for n in range(len(jobs))])
  print(f"{len(jobs)} videos in {out} ({len(jobs) - len(todo)} were there)")


def _write_metadata(out: Path, rows: list[tuple[str, str]]) -> None:
  """Hugging Face's video-folder index, so that others read the prompts."""
  lines = [json.dumps({"file_name": f, "text": t}) + "\n" for f, t in rows]
  (out / "metadata.jsonl").write_text("".join(lines))


def _embed(
  model: Pipeline, prompts: list[str], file: str | None
) -> tuple[np.ndarray, np.ndarray, dict | None]:
  if file is None:
    return *model.encode(prompts), None
  try:
    arrays = dict(np.load(file, allow_pickle=False))
  except (OSError, ValueError) as error:
    raise ValueError(f"{file} is no readable .npz file ({error})") from None
  if "text" not in arrays or len(arrays["text"]) != len(prompts):
    raise ValueError(
      f"{file} needs an array text [{len(prompts)}, S, D], one row a prompt; "
      f"it has {({k: v.shape for k, v in arrays.items()})}"
    )
  text = arrays["text"].astype(np.float32)
  mask = arrays.get("text_mask", np.ones(text.shape[:2], bool))
  null = {
    "null_text": arrays.get("null_text", np.zeros_like(text[0])),
    "null_mask": arrays.get("null_mask", np.zeros_like(mask[0])),
  }
  return text, mask, null


def _read_noise(
  file: str | None, model: Pipeline, count: int
) -> jax.Array | None:
  if file is None:
    return None
  try:
    noise = np.load(file, allow_pickle=False)
  except (OSError, ValueError) as error:
    raise ValueError(f"{file} is no readable .npy file ({error})") from None
  want = (count, *model.recipe.latent_shape)
  if noise.shape != want:
    raise ValueError(
      f"{file} has shape {noise.shape}; {count} videos of this model need {want}"
    )
  return jnp.asarray(noise, jnp.float32)
