"""A model ready to sample: network, codec, text encoder and recipe."""

import dataclasses
import functools
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.lora import Adapted, merge
from dollar_jax.typing import Array, Params

EMBEDDED = Path(__file__).parents[1] / "assets" / "digits"
"""The model that comes with the package."""


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
    if self.text_encoder is None:
      raise ValueError(
        "this model has no text encoder; give the prompts' embeddings with "
        "--text_embeddings=FILE.npz (arrays text [N, S, D], text_mask [N, S])"
      )
    return self.text_encoder.encode(list(prompts))

  @functools.cached_property
  def null_prompt(self) -> dict[str, np.ndarray]:
    """`null_text` [S, D] and `null_mask` [S] of the negative prompt."""
    text, mask = self.encode([self.recipe.negative_prompt])
    return {"null_text": text[0], "null_mask": mask[0]}

  def draw_noise(self, names: Sequence[str], seed: int) -> Array:
    """Noise [K, B, T, H, W, C], each video's from its own name and the seed."""
    count = max(len(self.recipe.grid), 1)
    codes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    shape = (count, *self.recipe.latent_shape)
    return _draw_noise(jax.random.key(seed), codes, shape)

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

    return jax.jit(sample)

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
    out = []
    for start in tqdm(
      range(0, len(prompts), size),
      desc="sample",
      disable=None if progress else True,  # None: where stderr is no terminal
    ):
      rows = [min(start + i, len(prompts) - 1) for i in range(size)]
      text, mask = self.encode([prompts[i] for i in rows])
      noises = self.draw_noise([names[i] for i in rows], seed)
      x0 = self.sample_latents(text, mask, noises)
      out.append(np.asarray(_decode(self.codec, x0)))
    return np.concatenate(out)[: len(prompts)]


@functools.partial(jax.jit, static_argnums=2)
def _draw_noise(key: Array, codes: Array, shape: tuple[int, ...]) -> Array:
  keys = jax.vmap(lambda code: jax.random.fold_in(key, code))(codes)
  draw = functools.partial(jax.random.normal, shape=shape)
  return jnp.swapaxes(jax.vmap(draw)(keys), 0, 1)


@jax.jit
def _decode(codec: Any, x0: Array) -> Array:
  return codec.decode(x0)
