"""Sampling by diffusers' own pipelines, from given noise and embeddings."""

import pathlib
import sys
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from dollar_jax.interop.recipe import Recipe


def open_pipeline(folder: pathlib.Path, **options: Any) -> Any:
  """The pipeline of a model folder, but for its codec and text encoder."""
  absent = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
  pipe = diffusers.DiffusionPipeline.from_pretrained(
    folder, **absent, **options
  )
  pipe.set_progress_bar_config(disable=True)
  return pipe


def channel_axis(pipe: Any) -> int:
  """Where its latents have their channels; CogVideoX has frames first."""
  return 2 if isinstance(pipe, diffusers.CogVideoXPipeline) else 1


def sample(
  pipe: Any,
  recipe: Recipe,
  noises: np.ndarray,
  text: np.ndarray,
  null: np.ndarray,
) -> np.ndarray:
  """Calls a pipeline as the recipe says.

  Args:
    pipe: from `open_pipeline`.
    recipe: steps, guidance and size.
    noises: [K, B, T, H, W, C], the first latents and what is drawn later.
    text: [B, S, D].
    null: [S, D], read where there is guidance.

  Returns:
    Latents [B, T, H, W, C] float32.
  """
  axis, dtype = channel_axis(pipe), pipe.transformer.dtype
  first, *later = (
    torch.from_numpy(noise).to(dtype).movedim(-1, axis) for noise in noises
  )
  # drawn at the end, weighs nothing
  draw = mock.Mock(side_effect=[*later, torch.zeros_like(first)])
  module = sys.modules[type(pipe.scheduler).__module__]
  guided = {}
  if recipe.guidance != 1.0:
    negative = torch.from_numpy(null).to(dtype).expand(len(text), -1, -1)
    guided["negative_prompt_embeds"] = negative
  time, rows, columns, _ = recipe.latent_shape
  with (
    torch.no_grad(),
    mock.patch.object(module, "randn_tensor", draw, create=True),
  ):
    out = pipe(
      prompt_embeds=torch.from_numpy(text).to(dtype),
      latents=first,
      num_frames=4 * time - 3,
      height=8 * rows,
      width=8 * columns,
      num_inference_steps=recipe.steps,
      guidance_scale=recipe.guidance,
      output_type="latent",
      return_dict=False,
      **guided,
    )[0]
  return out.float().movedim(axis, -1).numpy()
