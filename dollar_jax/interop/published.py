"""The open models that can be read: their sizes, and how they are sampled."""

import dataclasses

from dollar_jax.interop.recipe import Recipe
from dollar_jax.models.configs import CogVideoXConfig, WanConfig

_WAN_14B = WanConfig(num_attention_heads=40, ffn_dim=13824, num_layers=40)
_WAN_14B_IMAGE = dataclasses.replace(
  _WAN_14B, in_channels=36, image_dim=1280, added_kv_proj_dim=5120
)
_COGVIDEOX_5B = CogVideoXConfig(
  num_attention_heads=48,
  num_layers=42,
  use_rotary_positional_embeddings=True,
)

PUBLISHED = {
  "Wan2.1-T2V-1.3B": WanConfig(),
  "Wan2.1-T2V-14B": _WAN_14B,
  "Wan2.1-I2V-14B": _WAN_14B_IMAGE,
  "Wan2.1-FLF2V-14B": dataclasses.replace(
    _WAN_14B_IMAGE, pos_embed_seq_len=514
  ),
  "Wan2.2-TI2V-5B": WanConfig(
    num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48
  ),
  "Wan2.2-T2V-A14B, each expert": _WAN_14B,
  "Wan2.2-I2V-A14B, each expert": dataclasses.replace(_WAN_14B, in_channels=36),
  "CogVideoX-2b": CogVideoXConfig(),
  "CogVideoX-5b": _COGVIDEOX_5B,
  "CogVideoX1.5-5B": dataclasses.replace(
    _COGVIDEOX_5B,
    patch_size_t=2,
    patch_bias=False,
    sample_width=170,
    sample_height=96,
    sample_frames=81,
    max_text_seq_length=224,
  ),
}
"""Transformers by the name of the release, as their config.json files say."""


def published_recipe(config: WanConfig | CogVideoXConfig) -> Recipe:
  """How the publishers of a transformer sample it; any size is possible.

  Wan 2.1 makes 81 frames of 480x832, Wan 2.2 5B 121 of 704x1280, CogVideoX the
  size in its config. CogVideoX 1.5 makes whole pairs of latent frames, where
  its pipeline makes one more and drops it.
  """
  if isinstance(config, CogVideoXConfig):
    stretch = config.patch_size_t or 1
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    frames = -(-frames // stretch) * stretch
    size = frames, config.sample_height, config.sample_width
    fps = 8.0 if config.patch_size_t is None else 16.0
    return Recipe((*size, config.out_channels), fps, 50, 6.0)
  if config.out_channels == 48:
    return Recipe((31, 44, 80, 48), 24.0, 50, 5.0)
  return Recipe((21, 60, 104, config.out_channels), 16.0, 50, 5.0)
