"""Models without their weights: the shapes of a teacher, codec and prompts.

A plan needs no more, so that it can be made of a model that is not there.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dollar_jax.diffusion.process import FlowProcess, make_process
from dollar_jax.interop import diffusers
from dollar_jax.interop.folders import check_source
from dollar_jax.interop.keymaps import TRANSFORMERS
from dollar_jax.interop.networks import template
from dollar_jax.interop.pipeline import EMBEDDED, Pipeline
from dollar_jax.interop.published import PUBLISHED, published_recipe
from dollar_jax.interop.recipe import Recipe
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.configs import CogVideoXConfig
from dollar_jax.models.denoiser import EXPERTS, Denoiser
from dollar_jax.models.video_vae import NETWORKS, VideoVAE
from dollar_jax.models.wan_vae import WanVAEConfig
from dollar_jax.typing import Params, PyTree

_EXPERTS_SUFFIX = ", each expert"
_BOUNDARIES = {"Wan2.2-T2V-A14B": 0.875, "Wan2.2-I2V-A14B": 0.9}
_WAN_WORDS = 512
_WAN_VAE_22 = WanVAEConfig(
  base_dim=160,
  decoder_base_dim=256,
  z_dim=48,
  latents_mean=(0.0,) * 48,
  latents_std=(1.0,) * 48,
  is_residual=True,
  in_channels=12,
  out_channels=12,
  patch_size=2,
)


class TextShape:
  """Stands for a text encoder whose embeddings are all zero.

  Attributes:
    dim: D, width of an embedding.
    max_length: S, tokens that a prompt is padded to.
  """

  def __init__(self, dim: int, max_length: int):
    """Takes both."""
    self.dim, self.max_length = dim, max_length

  def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Zeros [B, S, D] and a mask [B, S] of True."""
    shape = len(prompts), self.max_length
    return np.zeros((*shape, self.dim), np.float32), np.ones(shape, bool)


def outline(name: str | os.PathLike, **model_options: Any) -> Pipeline:
  """A pipeline whose parameters and codec are shapes.

  Args:
    name: a model folder, "embedded", or the name of a published model, with or
      without its owner, in the Hugging Face cache or not.
    **model_options: config fields that no folder holds, as for `load`.

  Raises:
    ValueError: if it is none of these, or a damaged folder.
  """
  if str(name) == "embedded":
    return _of_folder(EMBEDDED, model_options)
  published = str(name).rpartition("/")[2].removesuffix("-Diffusers")
  known = {key.removesuffix(_EXPERTS_SUFFIX): key for key in PUBLISHED}
  if not Path(name).exists() and published in known:
    return _of_published(published, known[published], model_options)
  try:
    return _of_folder(check_source(name), model_options)
  except ValueError as error:
    raise ValueError(
      f"{error}; models that can be planned without a folder are "
      f"{', '.join(known)}"
    ) from None


def _of_folder(path: Path, options: dict[str, Any]) -> Pipeline:
  denoiser = diffusers.load_denoiser(path, **options)
  codec = text = None
  if (path / "vae").is_dir():
    codec = _shapes(diffusers.load_codec(path))
  if (path / "text_encoder").is_dir():
    encoder = diffusers.load_text_encoder(path)
    text = TextShape(encoder.dim, encoder.max_length)
  stored = diffusers.load_recipe(path)
  usual = published_recipe(denoiser.config)
  recipe = Recipe.from_json(stored) if stored else usual
  return Pipeline(denoiser, _parameters(denoiser), codec, text, recipe)


def _of_published(name: str, key: str, options: dict[str, Any]) -> Pipeline:
  config = type(PUBLISHED[key])(**(vars(PUBLISHED[key]) | options))
  kind = next(a for a in TRANSFORMERS.values() if a.config is type(config))
  process, prediction = FlowProcess(), "flow"
  if isinstance(config, CogVideoXConfig):
    process, prediction = make_process("vp"), "v"
    codec = CogVideoXVAEConfig()
    text = TextShape(config.text_embed_dim, config.max_text_seq_length)
  else:
    codec = WanVAEConfig() if config.out_channels == 16 else _WAN_VAE_22
    text = TextShape(config.text_dim, _WAN_WORDS)
  denoiser = Denoiser(
    kind.module(config),
    process,
    prediction,
    boundary=_BOUNDARIES.get(name),
  )
  autoencoder = VideoVAE(NETWORKS[type(codec)].shapes(codec), codec)
  recipe = published_recipe(config)
  return Pipeline(denoiser, _parameters(denoiser), autoencoder, text, recipe)


def _parameters(denoiser: Denoiser) -> Params:
  """Shapes of float32 parameters, as training keeps them."""
  shapes = _shapes(template(denoiser.module))
  return shapes if denoiser.boundary is None else dict.fromkeys(EXPERTS, shapes)


def _shapes(tree: PyTree) -> PyTree:
  """Shapes of the leaves, as float32."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), tree
  )
