"""A tiny random model and its parts, shared by the interop tests."""

import types

import numpy as np
import pytest

from dollar_jax.interop.text_encoders import WordEncoder
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.wan import WanConfig
from tests.tiny import random_params

CONFIG = WanConfig(
  patch_size=(1, 2, 2),
  num_attention_heads=3,
  attention_head_dim=8,
  in_channels=4,
  out_channels=4,
  text_dim=6,
  freq_dim=16,
  ffn_dim=20,
  num_layers=2,
)


@pytest.fixture(scope="session")
def tiny():
  """Denoiser, params, codec, text encoder and recipe of one small model."""
  denoiser = make_wan(CONFIG, shift=3.0)
  rng = np.random.default_rng(1)
  codec = LinearVAE(
    *(rng.random(s, np.float32) for s in ((24, 4), (24,), (4,))),
    patch=(2, 2, 2),
  )
  return types.SimpleNamespace(
    denoiser=denoiser,
    params=random_params(denoiser),
    codec=codec,
    text_encoder=WordEncoder.create(["a", "3", "left"], dim=6, max_length=4),
    recipe={
      "grid": [1.0, 0.5],
      "guidance": 3.0,
      "latent_shape": [2, 4, 4, 4],
      "fresh_noise": 0.4,  # diffusers has no scheduler of such steps
    },
  )


@pytest.fixture
def saved(tiny, tmp_path):
  """Folder of the tiny model with all its parts."""
  from dollar_jax.interop import diffusers

  folder = tmp_path / "model"
  diffusers.save(
    folder,
    tiny.denoiser,
    tiny.params,
    tiny.codec,
    tiny.text_encoder,
    tiny.recipe,
  )
  return folder
