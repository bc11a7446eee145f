"""Where the tensors of a CLIP live: transformers' names, and OpenCLIP's.

OpenCLIP has query, key and value of a block in one tensor. It is taken apart
before its table is read: `in_proj_weight[0]`, `[1]`, `[2]` are its thirds.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from dollar_jax.interop.convert import torch_to_tree, tree_to_torch
from dollar_jax.interop.keymaps import (
  FRAME_PATCHES,
  LAYER_NORM,
  LINEAR,
  SAME,
  Keymap,
  make_keymap,
)
from dollar_jax.interop.weights import LazyTensor
from dollar_jax.models.clip import CLIP, CLIPConfig
from dollar_jax.typing import Params

WHOLE = {"": ("", SAME)}
EMBEDDING = {"weight": ("", SAME)}
MATRIX = {"weight": LINEAR["weight"]}
TRANSPOSED = {"": ("kernel", SAME)}  # a parameter that stands on the right
PATCHES = {"weight": FRAME_PATCHES["weight"]}

FUSED = ("attn.in_proj_weight", "attn.in_proj_bias")
"""Endings of the keys that hold query, key and value."""

TRANSFORMERS_ENDS = (
  ("logit_scale", "logit_scale", WHOLE),
  ("vision_model.embeddings.class_embedding", "vision/class_embedding", WHOLE),
  (
    "vision_model.embeddings.patch_embedding",
    "vision/patch_embedding",
    PATCHES,
  ),
  (
    "vision_model.embeddings.position_embedding",
    "vision/position_embedding",
    EMBEDDING,
  ),
  ("vision_model.pre_layrnorm", "vision/norm_in", LAYER_NORM),
  ("vision_model.post_layernorm", "vision/norm_out", LAYER_NORM),
  ("visual_projection", "vision/projection", MATRIX),
  ("text_model.embeddings.token_embedding", "text/token_embedding", EMBEDDING),
  (
    "text_model.embeddings.position_embedding",
    "text/position_embedding",
    EMBEDDING,
  ),
  ("text_model.final_layer_norm", "text/norm_out", LAYER_NORM),
  ("text_projection", "text/projection", MATRIX),
)
TRANSFORMERS_BLOCK = (
  ("layer_norm1", "norm1", LAYER_NORM),
  ("layer_norm2", "norm2", LAYER_NORM),
  ("self_attn.q_proj", "attn/to_q", LINEAR),
  ("self_attn.k_proj", "attn/to_k", LINEAR),
  ("self_attn.v_proj", "attn/to_v", LINEAR),
  ("self_attn.out_proj", "attn/to_out", LINEAR),
  ("mlp.fc1", "up", LINEAR),
  ("mlp.fc2", "down", LINEAR),
)
"""transformers' `CLIPModel` ⇄ `models.clip.CLIP`, without and in a block."""

OPEN_CLIP_ENDS = (
  ("logit_scale", "logit_scale", WHOLE),
  ("visual.class_embedding", "vision/class_embedding", WHOLE),
  ("visual.conv1", "vision/patch_embedding", PATCHES),
  ("visual.positional_embedding", "vision/position_embedding", WHOLE),
  ("visual.ln_pre", "vision/norm_in", LAYER_NORM),
  ("visual.ln_post", "vision/norm_out", LAYER_NORM),
  ("visual.proj", "vision/projection", TRANSPOSED),
  ("token_embedding", "text/token_embedding", EMBEDDING),
  ("positional_embedding", "text/position_embedding", WHOLE),
  ("ln_final", "text/norm_out", LAYER_NORM),
  ("text_projection", "text/projection", TRANSPOSED),
)
OPEN_CLIP_BLOCK = (
  ("ln_1", "norm1", LAYER_NORM),
  ("ln_2", "norm2", LAYER_NORM),
  *(
    (
      "attn",
      f"attn/{ours}",
      {
        f"in_proj_weight[{i}]": LINEAR["weight"],
        f"in_proj_bias[{i}]": LINEAR["bias"],
      },
    )
    for i, ours in enumerate(("to_q", "to_k", "to_v"))
  ),
  ("attn.out_proj", "attn/to_out", LINEAR),
  ("mlp.c_fc", "up", LINEAR),
  ("mlp.c_proj", "down", LINEAR),
)
"""The same for OpenCLIP's `CLIP`."""


def clip_keymap(config: CLIPConfig, open_clip: bool = False) -> Keymap:
  """The keymap of a CLIP of this config.

  Args:
    config: its size.
    open_clip: whether the names are OpenCLIP's, after `split_fused`.
  """
  name, ends, rows, prefixes = (
    "CLIPModel",
    TRANSFORMERS_ENDS,
    TRANSFORMERS_BLOCK,
    ("vision_model.encoder.layers", "text_model.encoder.layers"),
  )
  if open_clip:
    name, ends, rows, prefixes = (
      "OpenCLIP",
      OPEN_CLIP_ENDS,
      OPEN_CLIP_BLOCK,
      ("visual.transformer.resblocks", "transformer.resblocks"),
    )
  patch = config.vision_config.patch_size
  sizes = {"ph": patch, "pw": patch}
  entries = list(make_keymap(name, ends, 0, True, sizes).entries)
  towers = {"vision": config.vision_config, "text": config.text_config}
  for prefix, (tower, size) in zip(prefixes, towers.items(), strict=True):
    table = tuple(
      (f"{prefix}.{{i}}.{theirs}", f"{tower}/{{block}}/{ours}", kind)
      for theirs, ours, kind in rows
    )
    layers = size.num_hidden_layers
    entries += make_keymap(name, table, layers, True, sizes).entries
  return Keymap(name, tuple(entries))


def clip_template(config: CLIPConfig) -> Params:
  """Shapes of a CLIP's parameters; computes nothing."""
  size = config.vision_config.image_size
  shapes = (
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, 1), jnp.int32),
  )
  init = CLIP(config).init
  variables = jax.eval_shape(init, jax.random.key(0), *shapes)
  return meta.unbox(variables["params"])


def clip_from_torch(
  tensors: Mapping[str, Any], config: CLIPConfig, open_clip: bool = False
) -> Params:
  """Builds our parameters from a state dict; keeps types and bits.

  Args:
    tensors: torch key → array, or what `numpy.asarray` reads.
    config: size of the network.
    open_clip: whether the names are OpenCLIP's.

  Raises:
    ValueError: one sentence about every key that does not fit.
  """
  tensors = split_fused(tensors) if open_clip else dict(tensors)
  scale = tensors.get("logit_scale")
  if scale is not None and scale.shape == (1,):  # as some of OpenCLIP's have
    tensors["logit_scale"] = np.asarray(scale).reshape(())
  keymap = clip_keymap(config, open_clip)
  params = torch_to_tree(tensors, keymap, clip_template(config))
  return params | {"logit_scale": params["logit_scale"].reshape(())}


def clip_to_torch(
  params: Params, config: CLIPConfig, open_clip: bool = False
) -> dict[str, np.ndarray]:
  """Builds a state dict of transformers' or OpenCLIP's from our parameters.

  Raises:
    ValueError: one sentence about every leaf that does not fit.
  """
  keymap = clip_keymap(config, open_clip)
  tensors = tree_to_torch(params, keymap, clip_template(config))
  tensors["logit_scale"] = tensors["logit_scale"].reshape(())
  return join_fused(tensors) if open_clip else tensors


def split_fused(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """OpenCLIP's state dict with query, key and value apart, read lazily."""

  def third(tensor: Any, i: int) -> np.ndarray:
    return np.split(np.asarray(tensor), 3)[i]

  split = {}
  for key, tensor in tensors.items():
    if not key.endswith(FUSED) or tensor.shape[0] % 3:
      split[key] = tensor
      continue
    shape = (tensor.shape[0] // 3, *tensor.shape[1:])
    for i in range(3):
      read = functools.partial(third, tensor, i)
      split[f"{key}[{i}]"] = LazyTensor(shape, str(tensor.dtype), read)
  return split


def join_fused(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Inverse of `split_fused`."""
  joined = {}
  for key, tensor in tensors.items():
    name, _, place = key.partition("[")
    if not place:
      joined[key] = tensor
    elif name not in joined:
      joined[name] = np.concatenate([tensors[f"{name}[{i}]"] for i in range(3)])
  return joined
