"""A model ready to sample: network, codec, text encoder and recipe."""

import dataclasses
import functools
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dollar_jax.diffusion import samplers, timesteps
from dollar_jax.diffusion.guidance import guided
from dollar_jax.interop import buckets, diffusers
from dollar_jax.interop.convert import cast
from dollar_jax.interop.folders import check_source
from dollar_jax.interop.published import published_recipe
from dollar_jax.interop.recipe import Recipe
from dollar_jax.interop.text_encoders import TextEncoder
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.lora import Adapted, merge
from dollar_jax.parallel.compilation import compiler_options
from dollar_jax.typing import Array, Params

EMBEDDED = Path(__file__).parents[1] / "assets" / "digits"
"""The model that comes with the package."""

Embed = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]
"""Indices of B prompts → text [B, S, D] and text_mask [B, S]."""


class Batch(NamedTuple):
  """Videos that were sampled at once, on the host.

  Attributes:
    rows: which ones of those asked for.
    x0: their latents, float32 [n, T, H, W, C].
    frames: uint8 [n, F, H, W, 3]; None where they were not decoded.
    seconds: what each stage took, to some milliseconds: "text", "denoising",
      "decoding", and in the first batch "compiling".
  """

  rows: range
  x0: np.ndarray
  frames: np.ndarray | None
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Text in, videos out.

  Attributes:
    denoiser: the network.
    params: its parameters.
    codec: decodes latents; None leaves latents.
    text_encoder: embeds prompts; None takes embeddings only.
    recipe: how it is sampled.
    adapters: what of the parameters was trained as adapters, if that is so.
  """

  denoiser: Denoiser
  params: Params
  codec: Any
  text_encoder: Any
  recipe: Recipe
  adapters: Params | None = None

  @classmethod
  def load(
    cls, path: str | Path, scan: bool = False, host: bool = False
  ) -> "Pipeline":
    """Opens a model folder; "embedded" is the one in the package.

    It may also be the name of a model in the Hugging Face cache, or lie in a
    bucket, from which it is copied. A folder without recipe.json is sampled
    as its publishers do.

    Args:
      path: the folder, or name.
      scan: whether the network's blocks run under `nn.scan`.
      host: leaves the parameters as numpy arrays of the stored types, for the
        caller to place; else they are float32.

    Raises:
      ValueError: if it is not a model folder, or a damaged one.
    """
    if buckets.is_remote(path):
      path = buckets.download(buckets.place(path))
    path = EMBEDDED if str(path) == "embedded" else check_source(path)
    dtype = None if host else "float32"
    denoiser, params = diffusers.load(
      path, param_dtype=dtype, host=host, scan=scan
    )
    codec = encoder = None
    if (path / "vae").is_dir():
      codec = diffusers.load_codec(path)
    if (path / "text_encoder").is_dir():
      encoder = diffusers.load_text_encoder(path)
    stored = diffusers.load_recipe(path)
    usual = published_recipe(denoiser.config)
    recipe = Recipe.from_json(stored) if stored else usual
    return cls(denoiser, params, codec, encoder, recipe)

  def save(
    self, path: str | Path, dtype: str | None = None, **extra: Any
  ) -> None:
    """Writes a model folder, to a disk or a bucket.

    Args:
      path: the folder.
      dtype: see `diffusers.save`.
      **extra: goes to recipe.json.

    Raises:
      OSError: if it cannot be written.
    """
    recipe = self.recipe.to_json() | extra
    parts = self.codec, self.text_encoder, recipe
    options = {"dtype": dtype, "adapters": self.adapters}
    remote = buckets.is_remote(path)
    folder = buckets.scratch() / "model" if remote else path
    diffusers.save(folder, self.denoiser, self.params, *parts, **options)
    if remote:
      buckets.upload(folder, buckets.place(path), last="model_index.json")
      shutil.rmtree(folder)

  def with_params(self, params: Params, recipe: Recipe) -> "Pipeline":
    """The same model with other weights and recipe."""
    return dataclasses.replace(
      self, params=params, recipe=recipe, adapters=None
    )

  def with_adapters(self, adapters: Params, recipe: Recipe) -> "Pipeline":
    """The same model with adapters merged into its weights, as float32."""
    merged = merge(Adapted(cast(self.params, "float32"), adapters))
    return dataclasses.replace(
      self, params=merged, recipe=recipe, adapters=adapters
    )

  def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeds prompts: text [B, S, D], text_mask [B, S].

    Raises:
      ValueError: if there is no text encoder, or a prompt does not suit it.
    """
    return self._known_encoder.encode(list(prompts))

  @property
  def text_shape(self) -> tuple[int, int]:
    """S and D of an embedded prompt.

    Raises:
      ValueError: if there is no text encoder.
    """
    return self._known_encoder.max_length, self._known_encoder.dim

  @property
  def _known_encoder(self) -> TextEncoder:
    if self.text_encoder is None:
      raise ValueError(
        "this model has no text encoder; give the prompts' embeddings with "
        "--text_embeddings=FILE.npz (arrays text [N, S, D], text_mask [N, S])"
      )
    return self.text_encoder

  @functools.cached_property
  def null_prompt(self) -> dict[str, np.ndarray]:
    """`null_text` [S, D] and `null_mask` [S] of the negative prompt."""
    text, mask = self.encode([self.recipe.negative_prompt])
    return {"null_text": text[0], "null_mask": mask[0]}

  def draw_noise(self, names: Sequence[str], seed: int) -> Array:
    """Noise [K, B, T, H, W, C], each video's from its own name and the seed."""
    codes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    shape = (self._noises, *self.recipe.latent_shape)
    return _draw_noise(jax.random.key(seed), codes, shape)

  @property
  def _noises(self) -> int:
    """K, draws of noise that a video takes."""
    return max(len(self.recipe.grid), 1)

  @functools.cached_property
  def sampler(self) -> Any:
    """Jitted `(params, noises, text, mask, null_text, null_mask) -> x0`."""
    recipe, denoiser = self.recipe, self.denoiser
    process = denoiser.process

    def sample(params, noises, text, mask, null_text, null_mask):
      def predict(x_t, t, text, mask):
        return denoiser.predict_x0(params, x_t, t, text, mask)

      null = null_text, null_mask
      bound = guided(predict, text, mask, *null, recipe.guidance)
      if recipe.grid:
        grid, fresh = jnp.asarray(recipe.grid), recipe.fresh_noise
        return samplers.sample_student(bound, process, noises, grid, fresh)
      grid = timesteps.teacher_grid(recipe.steps, denoiser.shift)
      return samplers.sample_teacher(bound, process, noises[0], grid)

    options = compiler_options(jax.default_backend())
    return jax.jit(sample, compiler_options=options)

  def sample_latents(
    self,
    text: np.ndarray,
    text_mask: np.ndarray,
    noises: Array,
    null_prompt: dict[str, np.ndarray] | None = None,
  ) -> Array:
    """Samples one batch.

    Args:
      text: [B, S, D].
      text_mask: [B, S].
      noises: [K, B, T, H, W, C], see `draw_noise`.
      null_prompt: `null_text`, `null_mask` of guidance; None encodes the
        recipe's negative prompt.

    Returns:
      Latents [B, T, H, W, C] float32.
    """
    null = self.null_prompt if null_prompt is None else null_prompt
    return self.sampler(self.params, noises, text, text_mask, **null)

  def batches(
    self,
    names: Sequence[str],
    embed: Embed,
    text_shape: tuple[int, int],
    size: int,
    seed: int = 0,
    *,
    initial: np.ndarray | None = None,
    null_prompt: dict[str, np.ndarray] | None = None,
    decode: bool = True,
  ) -> Iterator[Batch]:
    """Samples videos, each batch while the one before is worked on.

    The device has the next batch to do while the caller writes this one and
    embeds the text of the one after: two batches of frames are in memory.
    All have one size, so that one compilation serves any number of videos; the
    last repeats its last video to get there.

    Args:
      names: N, one a video, from which its noise comes.
      embed: embeds the prompts of the videos of these indices.
      text_shape: S, D of what it returns.
      size: videos of a batch.
      seed: of the noise.
      initial: starts from this noise [N, T, H, W, C] instead.
      null_prompt: see `sample_latents`.
      decode: whether to go on to frames; with no codec there are none.

    Raises:
      ValueError: if a prompt cannot be embedded, or shapes do not fit.
    """
    if not names:
      return
    codec = jax.device_put(self.codec if decode else None)
    started = idle = time.perf_counter()
    programs = self._lower(codec, size, text_shape)

    def finish(rows, x0, frames, seconds, dispatched) -> Batch:
      """Waits for a batch; they come here in the device's order."""
      nonlocal idle
      began = max(dispatched, idle)
      jax.block_until_ready(x0)
      sampled = time.perf_counter()
      jax.block_until_ready(frames)
      idle = time.perf_counter()
      x0 = np.asarray(x0)[: len(rows)]
      if frames is not None:
        frames = np.asarray(frames)[: len(rows)]
      seconds["denoising"] = sampled - began
      seconds["decoding"] = time.perf_counter() - sampled
      return Batch(rows, x0, frames, seconds)

    with ThreadPoolExecutor(2) as compilers, ThreadPoolExecutor(1) as follower:
      compiling = [compilers.submit(_compile, program) for program in programs]
      null = self.null_prompt if null_prompt is None else null_prompt
      ahead = []
      for start in range(0, len(names), size):
        rows = range(start, min(start + size, len(names)))
        padded = [*rows] + [rows[-1]] * (size - len(rows))
        embedding = time.perf_counter()
        text, mask = embed(padded)
        seconds = {"text": time.perf_counter() - embedding}
        noises = self.draw_noise([names[i] for i in padded], seed)
        if initial is not None:
          noises = noises.at[0].set(initial[padded])
        if not start:
          ready = [program.result() for program in compiling]
          seconds["compiling"] = max(ready) - started
        dispatched = time.perf_counter()
        x0 = self.sample_latents(text, mask, noises, null)
        frames = None if codec is None else _decode(codec, x0)
        ahead.append(
          follower.submit(finish, rows, x0, frames, seconds, dispatched)
        )
        del x0, frames  # the device's, which `finish` lets go of
        if len(ahead) > 1:
          yield ahead.pop(0).result()
      for last in ahead:
        yield last.result()

  def _lower(
    self, codec: Any, size: int, text_shape: tuple[int, int]
  ) -> list[jax.stages.Lowered]:
    """The programs of a batch, traced: the sampler, and the codec if any."""
    tokens, width = text_shape
    struct = jax.ShapeDtypeStruct
    noises = (self._noises, size, *self.recipe.latent_shape)
    sampler = self.sampler.lower(
      self.params,
      struct(noises, jnp.result_type(float)),
      struct((size, tokens, width), np.float32),
      struct((size, tokens), bool),
      null_text=struct((tokens, width), np.float32),
      null_mask=struct((tokens,), bool),
    )
    if codec is None:
      return [sampler]
    return [sampler, _decode.lower(codec, sampler.out_info)]

  def generate(
    self,
    prompts: Sequence[str],
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
  ) -> np.ndarray:
    """Samples and decodes one video a prompt.

    The i-th use of a prompt has its own noise. Batches are of one size, so
    that one compilation serves any number of prompts.

    Returns:
      uint8 [N, F, H, W, 3].
    """
    counts: dict[str, int] = {}
    names = []
    for prompt in prompts:
      names.append(f"{prompt}-{counts.get(prompt, 0)}")
      counts[prompt] = counts.get(prompt, 0) + 1
    size = min(batch_size, len(prompts))
    batches = self.batches(
      names,
      lambda rows: self.encode([prompts[i] for i in rows]),
      self.text_shape,
      size,
      seed,
    )
    bar = tqdm(
      batches,
      desc="sample",
      total=-(-len(prompts) // size),
      disable=None if progress else True,  # None: where stderr is no terminal
    )
    return np.concatenate([batch.frames for batch in bar])


@functools.partial(jax.jit, static_argnums=2)
def _draw_noise(key: Array, codes: Array, shape: tuple[int, ...]) -> Array:
  keys = jax.vmap(lambda code: jax.random.fold_in(key, code))(codes)
  draw = functools.partial(jax.random.normal, shape=shape)
  return jnp.swapaxes(jax.vmap(draw)(keys), 0, 1)


@jax.jit
def _decode(codec: Any, x0: Array) -> Array:
  return codec.decode(x0)


def _compile(lowered: jax.stages.Lowered) -> float:
  """Compiles what the jitted function then finds ready; says when."""
  lowered.compile()
  return time.perf_counter()
