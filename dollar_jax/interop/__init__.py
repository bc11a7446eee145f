"""Weights and models to and from PyTorch's world."""

from dollar_jax.interop.diffusers import (
  load,
  load_codec,
  load_recipe,
  load_text_encoder,
  save,
)

__all__ = ["load", "load_codec", "load_recipe", "load_text_encoder", "save"]
