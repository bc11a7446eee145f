"""Make a data set of latents from captioned videos, or from prompts.

  dollar prepare --videos=clips --model=Wan2.1-T2V-1.3B-Diffusers --out=data
  dollar prepare --videos=clips --codec=linear --fit --out=data
  dollar prepare --prompts=prompts.txt --model=DIR --out=data [--synthesize]

Videos are a folder with Hugging Face's metadata.jsonl (file_name, text) or
metadata.csv, or a .csv file. They are cut into clips of one size and rate, and
encoded by a model's codec or by the linear one, fitted to them. Prompts, one a
line, become embeddings, and with --synthesize the model's own samples, too.

OUT is what config.data.source takes. What was not taken stands in
OUT/skipped.jsonl, with the reason. The same command goes on where it was
stopped; on a cluster, start it on every node.
"""

import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from dollar_jax.data import shards, sources
from dollar_jax.data.clips import ClipForm, usual_form
from dollar_jax.data.sources import Skipped, Source
from dollar_jax.interop import parts
from dollar_jax.interop.buckets import on_disk
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.parallel import distributed, processes
from dollar_jax.programs import _prepare_set as sets
from dollar_jax.programs._prepare_clips import (
  ClipMaker,
  fit_codec,
  word_encoder,
)
from dollar_jax.programs._prepare_prompts import PromptMaker, repeated
from dollar_jax.train.runs import open_model

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "videos", None, "Folder with metadata.jsonl, or .csv file.", flag_values=FLAGS
)
flags.DEFINE_string(
  "prompts", None, "File with one prompt a line.", flag_values=FLAGS
)
flags.DEFINE_string(
  "out", None, "Folder of the data set.", flag_values=FLAGS, required=True
)
flags.DEFINE_string(
  "model",
  None,
  "Model whose codec and text encoder are used: a folder, a finished run, a "
  "name in the Hugging Face cache, or 'embedded'.",
  flag_values=FLAGS,
)
flags.DEFINE_enum(
  "codec", None, ["linear"], "Codec to use without a model.", flag_values=FLAGS
)
flags.DEFINE_bool(
  "fit", False, "Fit that codec to the clips.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "fit_clips", 32, "Clips it is fitted to.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_integer(
  "channels", 32, "Its latent channels.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_integer(
  "text_dim",
  64,
  "Width of the word embeddings made with it.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_string(
  "video_size",
  None,
  "FRAMESxHEIGHTxWIDTH of a clip, such as 81x480x832; the model's own if "
  "absent, without a model 16 frames as large as most videos are.",
  flag_values=FLAGS,
)
flags.DEFINE_float(
  "fps",
  None,
  "Frames a second; the model's own if absent, without a model that of most "
  "videos.",
  flag_values=FLAGS,
)
flags.DEFINE_enum(
  "dtype",
  "float32",
  shards.DTYPES,
  "What latents and embeddings are stored as.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "synthesize",
  False,
  "Have the model sample latents of the prompts.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "steps", None, "Steps of its sampler; its own if absent.", flag_values=FLAGS
)
flags.DEFINE_float(
  "guidance",
  None,
  "Guidance scale; the model's own if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "samples_per_prompt",
  1,
  "Samples of each prompt.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "seed", 0, "Of their noise.", 0, 2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_integer(
  "batch_size",
  None,
  "Clips or samples at a time; 1 with a model's codec, else 8, if absent.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "shard_size",
  32,
  "Videos or prompts a shard, which is what is kept when stopped.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "threads", 4, "Videos decoded at a time.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_float(
  "max_skipped",
  0.5,
  "Share of the videos or prompts of which nothing may be taken.",
  0.0,
  1.0,
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT at which process 0 listens, where no cluster tells.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "num_processes", None, "Processes in all.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "process_id", None, "Which of them, from 0.", flag_values=FLAGS
)

_LINEAR_FRAMES = 16
_LINEAR_BATCH = 8
_DESCRIPTION = "Latents, text embeddings and prompts, made by dollar prepare."


@dataclasses.dataclass(frozen=True)
class Job:
  """A set that is to be made.

  Attributes:
    maker: makes its examples.
    latent_shape: [T, H, W, C]; empty for prompts alone.
    plan: what the set depends on.
    metadata: what is recorded of it beyond the plan.
    count: of all that is listed.
    skipped: rows of what is known to be of no use.
    listed: names in order, by which skipped rows are sorted.
    hashes: SHA-256 of every source by its name.
    unit: what is counted.
  """

  maker: sets.Maker
  latent_shape: tuple[int, ...]
  plan: dict[str, Any]
  metadata: dict[str, Any]
  count: int
  skipped: list[dict[str, Any]]
  listed: list[str]
  hashes: dict[str, str]
  unit: str


def main(values: flags.FlagValues) -> None:
  """Makes the set, or what is missing of it.

  Raises:
    ValueError: for flags, lists or files that do not fit.
    OSError: if OUT cannot be written, or the processes lose each other.
  """
  _check_flags(values)
  where = values.coordinator, values.num_processes, values.process_id
  with distributed.joined(*where):
    out = on_disk(values.out).resolve()
    sets.check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    job = _videos(values, out) if values.videos else _prompts(values)
    text, _ = job.maker.text_encoder.encode([""])
    plan = job.plan | {
      "text_encoder": parts.identity(job.maker.text_encoder),
      "dtype": values.dtype,
      "batch_size": job.maker.batch_size,
      "shard_size": values.shard_size,
    }
    sets.agree_on(out, plan)
    count = len(shards.deal(len(job.maker), values.shard_size))
    shape, text_shape = job.latent_shape, text.shape[1:]
    found = shards.Shards(out, count, shape, text_shape, values.dtype)
    sets.write_shards(found, job.maker, values.shard_size, job.unit)
    if processes.is_first():
      _finish(out, found, job, plan, values.max_skipped)
    processes.wait_for_all("info")


def _check_flags(values: flags.FlagValues) -> None:
  """Checks which flags go together.

  Raises:
    ValueError: if some do not.
  """
  if bool(values.videos) == bool(values.prompts):
    raise ValueError("give either --videos=DIR or --prompts=FILE")
  if values.model and values.codec:
    raise ValueError(
      "give either --model=DIR, whose codec is used, or --codec=linear --fit"
    )
  if values.prompts and not values.model:
    raise ValueError("--prompts needs --model=DIR, whose text encoder embeds")
  if not values.model and not values.codec:
    raise ValueError(
      "nothing to encode the videos with; give --model=DIR, or --codec=linear "
      "--fit"
    )
  if bool(values.codec) != values.fit:
    raise ValueError("--codec=linear and --fit go together: give both")
  if values.synthesize and not values.prompts:
    raise ValueError("--synthesize needs --prompts=FILE, to make samples of")


def _videos(values: flags.FlagValues, out: Path) -> Job:
  listed = sources.read_sources(values.videos)
  kept, skipped = _kept(listed, values.threads)
  skipped += [
    Skipped(name, "no list gives its caption")
    for name in sources.unlisted(values.videos, listed)
  ]
  rows = sets.as_rows(skipped)
  count = len(kept) + len(rows)
  if processes.is_first() and sets.read_plan(out) is None:
    sets.write_skipped(out, rows)
  sets.check_share(out, rows, count, values.max_skipped)
  if not kept:
    raise ValueError(
      f"no video in {values.videos} can be taken; see {out / sets.SKIPPED}"
    )
  files = [source for source, _ in kept]
  hashes = {source.file_name: found for source, found in kept}
  plan = {
    "made_of": "videos",
    "sources": sets.digest([(s.file_name, s.text, h) for s, h in kept]),
  }
  if values.model:
    codec, encoder, recipe = parts.open_parts(values.model)
    _check_parts(values.model, codec=codec, text_encoder=encoder)
    form = _form(values, _own_form(codec, recipe))
  else:
    usual = usual_form([s.path for s in files], _LINEAR_FRAMES, 8)
    form = _form(values, usual)
    fit = values.fit_clips, values.channels, values.text_dim
    plan["fit"] = dict(zip(("clips", "channels", "text_dim"), fit, strict=True))
    codec, encoder = _fitted(values, out, files, form)
  plan |= {
    "codec": parts.identity(codec),
    "video_size": [form.frames, form.height, form.width],
    "fps": form.fps,
  }
  size = _LINEAR_BATCH if isinstance(codec, LinearVAE) else 1
  size = values.batch_size or size
  maker = ClipMaker(files, form, codec, encoder, size, values.threads)
  shape = codec.latent_shape(form.frames, form.height, form.width)
  return Job(
    maker,
    shape,
    plan,
    {"model": values.model, "codec_scale": parts.scale(codec)},
    count,
    rows,
    [s.file_name for s in listed],
    hashes,
    "video",
  )


def _kept(
  listed: Sequence[Source], threads: int
) -> tuple[list[tuple[Source, str]], list[Skipped]]:
  """The sources worth decoding; every process reads its share of the files."""
  share = processes.share_of_rows(len(listed))
  with ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(sources.fingerprint, [listed[i] for i in share]))
  return sources.sift(listed, processes.gather_texts(found)[: len(listed)])


def _fitted(
  values: flags.FlagValues, out: Path, files: list[Source], form: ClipForm
) -> tuple[LinearVAE, Any]:
  """The linear codec and the word encoder, read from where they are kept."""
  if processes.is_first() and sets.read_plan(out) is None:
    codec = fit_codec(
      files, form, values.fit_clips, values.channels, values.threads
    )
    encoder = word_encoder([s.text for s in files], values.text_dim)
    parts.save_parts(out, codec, encoder)
  processes.wait_for_all("fit")
  found = parts.load_parts(out)
  if found is None:
    raise ValueError(
      f"{out} holds a set without a codec of its own; give another --out"
    )
  return found


def _prompts(values: flags.FlagValues) -> Job:
  prompts = sources.read_prompts(values.prompts)
  plan: dict[str, Any] = {"made_of": "prompts"}
  metadata: dict[str, Any] = {"model": values.model}
  shape, model = (), None
  if values.synthesize:
    model = open_model(values.model)
    codec, encoder = model.codec, model.text_encoder
    recipe = model.recipe
    if recipe.grid and values.guidance is None:
      raise ValueError(
        f"{values.model} is a few-step student; give --model=TEACHER, or "
        "--guidance=W to sample it along the ODE"
      )
    steps = recipe.steps if values.steps is None else values.steps
    guidance = recipe.guidance if values.guidance is None else values.guidance
    recipe = recipe.as_teacher(steps, guidance)
    if values.video_size:
      _check_parts(values.model, codec=codec)
      recipe = recipe.of_size(codec.latent_shape(*_size(values.video_size)))
    model = model.with_params(model.params, recipe)
    shape = recipe.latent_shape
    plan["synthesize"] = {
      "model": values.model,
      "recipe": recipe.to_json(),
      "seed": values.seed,
    }
    metadata["fps"] = recipe.fps
    if codec is not None:
      plan["codec"] = parts.identity(codec)
      metadata["codec_scale"] = parts.scale(codec)
  else:
    _, encoder, _ = parts.open_parts(values.model)
  _check_parts(values.model, text_encoder=encoder)
  texts, names = repeated(prompts, values.samples_per_prompt)
  plan["sources"] = sets.digest(names)
  size = min(values.batch_size or _LINEAR_BATCH, values.shard_size)
  maker = PromptMaker(texts, names, encoder, model, size, values.seed)
  return Job(
    maker, shape, plan, metadata, len(texts), [], prompts, {}, "prompt"
  )


def _check_parts(model: str, **found: Any) -> None:
  for name, part in found.items():
    if part is None:
      folder = "vae" if name == "codec" else name
      raise ValueError(
        f"{model} has no {name.replace('_', ' ')}; copy {folder}/ into the "
        "folder"
      )


def _size(text: str) -> tuple[int, int, int]:
  match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
  if match is None:
    raise ValueError(
      f"--video_size={text} is no size; give frames, height and width, such "
      "as 81x480x832"
    )
  return tuple(map(int, match.groups()))


def _own_form(codec: Any, recipe: Any) -> ClipForm:
  """The clips that a model makes by itself."""
  return ClipForm(*parts.clip_size(codec, recipe.latent_shape), recipe.fps)


def _form(values: flags.FlagValues, usual: ClipForm) -> ClipForm:
  form = usual
  if values.video_size:
    form = ClipForm(*_size(values.video_size), form.fps)
  if values.fps is not None:
    form = dataclasses.replace(form, fps=values.fps)
  return form


def _finish(
  out: Path,
  found: shards.Shards,
  job: Job,
  plan: dict[str, Any],
  max_skipped: float,
) -> None:
  """Writes what was skipped, the sources and the info, and tells of them."""
  notes = [found.notes(index) or {} for index in range(found.count)]
  rows = job.skipped + [row for note in notes for row in note["skipped"]]
  place = {name: i for i, name in reversed(list(enumerate(job.listed)))}
  rows.sort(
    key=lambda row: place.get(row.get("file_name", row.get("prompt")), 1 << 60)
  )
  sets.write_skipped(out, rows)
  sets.check_share(out, rows, job.count, max_skipped)
  examples = sum(note["examples"] for note in notes)
  if not examples:
    raise ValueError(f"nothing could be taken; see {out / sets.SKIPPED}")
  sets.write_sources(out, notes, job.hashes)
  quality = sets.psnr(notes)
  metadata = plan | job.metadata | {"examples": examples, "skipped": len(rows)}
  if quality is not None:
    metadata["psnr"] = round(quality, 3)
  found.finish(_DESCRIPTION, metadata)
  text = f"{examples} examples of {job.count} {job.unit}s in {out}"
  if quality is not None:
    text += f"; the linear codec's PSNR is {quality:.2f} dB"
  print(f"{text}; {len(rows)} skipped")
