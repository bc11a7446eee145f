"""Makes a data set of latents, for `dollar prepare`."""

from pathlib import Path
from typing import Any

from absl import flags

from dollar_jax.data import shards
from dollar_jax.interop import parts
from dollar_jax.interop.buckets import on_disk
from dollar_jax.parallel import distributed, processes
from dollar_jax.programs import _prepare_set as sets
from dollar_jax.programs._flags import processes_of
from dollar_jax.programs._prepare_jobs import (
  Job,
  make_prompts_job,
  make_videos_job,
)

_DESCRIPTION = "Latents, text embeddings and prompts, made by dollar prepare."


def main(values: flags.FlagValues) -> None:
  """Makes the set, or what is missing of it.

  Raises:
    ValueError: for flags, lists or files that do not fit.
    OSError: if OUT cannot be written, or the processes lose each other.
  """
  _check_flags(values)
  with distributed.joined(*processes_of(values)):
    out = on_disk(values.out).resolve()
    sets.check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    if values.videos:
      job = make_videos_job(values, out)
    else:
      job = make_prompts_job(values)
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
