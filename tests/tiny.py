"""Tiny transformers with random parameters, for tests of any room."""

import jax
import numpy as np

from dollar_jax.diffusion.process import FlowProcess, VPProcess
from dollar_jax.interop.networks import template
from dollar_jax.models.cogvideox import CogVideoXConfig, CogVideoXTransformer
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.wan import WanConfig, WanTransformer

WORDS = 5
"""Words of a prompt."""

SHARED = {"in_channels": 4, "out_channels": 4, "num_layers": 2}
WAN = WanConfig(
  num_attention_heads=3,
  attention_head_dim=12,
  text_dim=10,
  freq_dim=16,
  ffn_dim=20,
  **SHARED,
)
COGVIDEOX = CogVideoXConfig(
  num_attention_heads=2,
  attention_head_dim=16,
  time_embed_dim=20,
  text_embed_dim=10,
  sample_width=12,
  sample_height=8,
  sample_frames=9,
  max_text_seq_length=WORDS,
  use_rotary_positional_embeddings=True,
  **SHARED,
)


def wan(config=WAN, shift=3.0, boundary=None):
  """A Wan model; with a boundary, of two experts."""
  module = WanTransformer(config)
  return Denoiser(module, FlowProcess(), "flow", shift, boundary)


def cogvideox(config=COGVIDEOX, snr_shift_scale=3.0):
  """A CogVideoX model, v-prediction with zero terminal signal."""
  process = VPProcess(snr_shift_scale=snr_shift_scale)
  return Denoiser(CogVideoXTransformer(config), process, "v")


def random_params(denoiser, dtype="float32", scale=1.0):
  """One network's parameters, no two alike, without compiling anything."""
  rng = np.random.default_rng(0)
  dtype = jax.numpy.dtype(dtype)
  return jax.tree.map(
    lambda s: (scale * rng.standard_normal(s.shape)).astype(dtype),
    template(denoiser.module),
  )
