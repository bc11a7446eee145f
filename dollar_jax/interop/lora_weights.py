"""Adapters as the LoRA files that diffusers' `load_lora_weights` takes."""

from pathlib import Path

import numpy as np
from flax import traverse_util

from dollar_jax.interop.keymaps import Keymap
from dollar_jax.interop.networks import form_of
from dollar_jax.interop.weights import write_weights
from dollar_jax.models.denoiser import EXPERTS, Denoiser
from dollar_jax.typing import Params

STEMS = ("pytorch_lora_weights", "pytorch_lora_weights_2")
"""File names; the second of the expert for less noisy times."""


def write_adapters(folder: Path, denoiser: Denoiser, adapters: Params) -> None:
  """Writes one file, or one for each of two experts.

  Raises:
    OSError: if it cannot be written.
  """
  keymap = form_of(denoiser.module).keymap(denoiser.config)
  trees = [adapters]
  if denoiser.boundary is not None:
    trees = [adapters[name] for name in EXPERTS]
  for stem, tree in zip(STEMS, trees, strict=False):
    write_weights(folder, stem, adapters_to_torch(tree, keymap))


def adapters_to_torch(adapters: Params, keymap: Keymap) -> dict:
  """Torch key → array: `lora_A` [rank, in] and `lora_B` [out, rank] a layer.

  Their scale is 1, which is what diffusers takes where a file names none.
  """
  leaves = traverse_util.flatten_dict(adapters)
  tensors = {}
  for entry in keymap.entries:
    for name in "ab":
      leaf = leaves.get((*entry.path[:-1], name))
      if leaf is None or entry.path[-1] != "kernel":
        continue
      leaf = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
      layer = entry.torch.removesuffix(".weight")
      key = f"transformer.{layer}.lora_{name.upper()}.weight"
      tensors[key] = np.ascontiguousarray(leaf.T)
  return tensors
