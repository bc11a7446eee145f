"""What `dollar prepare` has to make, from its flags."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from dollar_jax.data import sources
from dollar_jax.data.clips import ClipForm, usual_form
from dollar_jax.data.sources import Skipped, Source
from dollar_jax.interop import parts
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.parallel import processes
from dollar_jax.programs import _prepare_set as sets
from dollar_jax.programs._flags import parse_video_size
from dollar_jax.programs._prepare_clips import (
  ClipMaker,
  fit_codec,
  word_encoder,
)
from dollar_jax.programs._prepare_prompts import PromptMaker, repeated
from dollar_jax.train.models import open_model

_LINEAR_FRAMES = 16
_LINEAR_BATCH = 8


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


def make_videos_job(values: flags.FlagValues, out: Path) -> Job:
  """A set of the videos in a list.

  Without a model its codec is fitted here, and lies in `out` afterwards.

  Raises:
    ValueError: if the list, the model or the sizes do not do, or too many
      files are of no use.
  """
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


def make_prompts_job(values: flags.FlagValues) -> Job:
  """A set of prompts, alone or with a model's samples.

  Raises:
    ValueError: if the file or the model does not do.
  """
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
      recipe = recipe.of_size(
        codec.latent_shape(*parse_video_size(values.video_size))
      )
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


def _own_form(codec: Any, recipe: Any) -> ClipForm:
  """The clips that a model makes by itself."""
  return ClipForm(*parts.clip_size(codec, recipe.latent_shape), recipe.fps)


def _form(values: flags.FlagValues, usual: ClipForm) -> ClipForm:
  form = usual
  if values.video_size:
    form = ClipForm(*parse_video_size(values.video_size), form.fps)
  if values.fps is not None:
    form = dataclasses.replace(form, fps=values.fps)
  return form
