"""CLIP's weights and tokeniser from files, of transformers or of OpenCLIP."""

import dataclasses
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.clip_keymaps import clip_from_torch
from dollar_jax.interop.folders import PICKLES, read_json
from dollar_jax.interop.weights import FLOATS, LazyTensor
from dollar_jax.models.clip import (
  HIGHEST_ID,
  CLIPConfig,
  CLIPTextConfig,
  CLIPVisionConfig,
)
from dollar_jax.typing import Params

STEM = "model"
"""Name of the weight files in a folder, without its ending."""

COUNTERS = "position_ids"
"""Ending of keys that older files have: 0, 1, 2 …, which no module reads."""

HEAD_DIM = 64
VISION_HEAD_DIMS = {1280: 80, 1408: 88, 1664: 104}
"""Head sizes of OpenCLIP's ViT-H, -g and -bigG by the width of their tower of
images; every other tower has heads of `HEAD_DIM`."""

CONVERT = (
  "import sys, torch, safetensors.torch as s; "
  "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
  "w = w.get('state_dict', w); "
  "s.save_file({k: v.clone() for k, v in w.items()}, sys.argv[2])"
)
"""What makes a safetensors file, argument 2, of a pickle, argument 1."""

TOKENIZER = ("tokenizer.json",), ("vocab.json", "merges.txt")
"""Files of a tokeniser: the one, or the others."""


def load_clip(
  path: str | os.PathLike,
  *,
  activation: str = "gelu",
  vision_heads: int | None = None,
  text_heads: int | None = None,
  dtype: str = "float32",
) -> tuple[CLIPConfig, Params]:
  """Reads a CLIP.

  Args:
    path: a folder as transformers' `CLIPModel` saves it, config.json and
      model.safetensors or its shards; or one .safetensors file with OpenCLIP's
      names, whose sizes are inferred (`infer_config`). The rest is for such a
      file.
    activation: "gelu", or "quick_gelu" for OpenAI's weights.
    vision_heads: heads of the tower of images; None: by its width.
    text_heads: heads of the tower of texts; None: by its width.
    dtype: compute type.

  Returns:
    The config, and the parameters as numpy arrays of the stored types.

  Raises:
    ValueError: if there is no such file, or it is damaged, a pickle, or not a
      CLIP.
  """
  path = on_disk(path)
  tensors = open_tensors(path)
  try:
    if path.is_dir():
      config = config_from_json(read_json(path / "config.json"), dtype)
      return config, clip_from_torch(tensors, config)
    config = infer_config(
      tensors,
      activation=activation,
      vision_heads=vision_heads,
      text_heads=text_heads,
      dtype=dtype,
    )
    return config, clip_from_torch(tensors, config, open_clip=True)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def config_from_json(
  raw: Mapping[str, Any], dtype: str = "float32"
) -> CLIPConfig:
  """The config that a CLIPModel's config.json describes.

  What it lacks has transformers' defaults; what changes no number is skipped.

  Args:
    raw: the object in that file.
    dtype: compute type.

  Raises:
    ValueError: if it is of another model, or for a value that is unusable.
  """
  if "vision_config" not in raw and "vision_config_dict" not in raw:
    raise ValueError(
      "config.json describes no CLIPModel, for it lacks vision_config; give "
      "the folder of a model with both towers"
    )
  towers = {}
  for name, kind in (
    ("vision_config", CLIPVisionConfig),
    ("text_config", CLIPTextConfig),
  ):
    section = raw.get(f"{name}_dict")  # where there is one it rules
    section = section if section is not None else raw.get(name) or {}
    known = {field.name for field in dataclasses.fields(kind)}
    towers[name] = kind(**{k: section[k] for k in known & section.keys()})
  return CLIPConfig(
    **towers, projection_dim=raw.get("projection_dim", 512), dtype=dtype
  )


def infer_config(
  tensors: Mapping[str, Any],
  *,
  activation: str = "gelu",
  vision_heads: int | None = None,
  text_heads: int | None = None,
  dtype: str = "float32",
) -> CLIPConfig:
  """The config of a state dict with OpenCLIP's names, from its shapes.

  Args:
    tensors: key → anything with a shape.
    activation: which the shapes do not tell.
    vision_heads: nor this; None: heads of `VISION_HEAD_DIMS`, else of 64.
    text_heads: None: heads of 64.
    dtype: compute type.

  Raises:
    ValueError: if it is no such state dict, or the width and the heads of a
      tower do not fit.
  """
  needed = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    "visual.transformer.resblocks.0.mlp.c_fc.weight",
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.0.mlp.c_fc.weight",
  )
  absent = [key for key in needed if key not in tensors]
  if absent:
    raise ValueError(
      f"the weights have no {absent[0]}, so they are not those of an OpenCLIP "
      "ViT; give transformers' CLIPModel as a folder with config.json"
    )
  shapes = {key: tuple(tensors[key].shape) for key in needed}
  width, _, patch, _ = shapes["visual.conv1.weight"]
  grid = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
  vision = CLIPVisionConfig(
    **_sizes(tensors, "visual.transformer"),
    num_attention_heads=vision_heads
    or _heads(width, VISION_HEAD_DIMS.get(width, HEAD_DIM), "vision_heads"),
    hidden_act=activation,
    image_size=grid * patch,
    patch_size=patch,
  )
  words, width = shapes["token_embedding.weight"]
  text = CLIPTextConfig(
    **_sizes(tensors, "transformer"),
    num_attention_heads=text_heads or _heads(width, HEAD_DIM, "text_heads"),
    hidden_act=activation,
    vocab_size=words,
    max_position_embeddings=shapes["positional_embedding"][0],
    eos_token_id=HIGHEST_ID,
  )
  return CLIPConfig(vision, text, shapes["visual.proj"][1], dtype)


def open_tensors(path: Path) -> dict[str, LazyTensor]:
  """Opens a .safetensors file, or the one or the shards in a folder.

  Args:
    path: the file or the folder.

  Returns:
    key → tensor, read from disk when it is asked for, without `COUNTERS`.

  Raises:
    ValueError: if a file is missing, damaged, a pickle, or holds a type other
      than float32, float16 and bfloat16.
  """
  tensors = {}
  for file in _files(path):
    try:
      with safetensors.safe_open(file, framework="numpy") as opened:
        for key in opened.keys():  # noqa: SIM118 (not a mapping)
          if not key.endswith(COUNTERS):
            tensors[key] = _describe(file, key, opened.get_slice(key))
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{file} ({file.stat().st_size} bytes) is not a whole safetensors "
        f"file ({error}); copy it again"
      ) from None
  return tensors


def load_tokenizer(
  folder: str | os.PathLike, length: int
) -> Callable[[Sequence[str]], np.ndarray]:
  """CLIP's tokeniser, by transformers.

  Args:
    folder: has tokenizer.json, or vocab.json and merges.txt.
    length: S, tokens that a text is padded or cut to; a cut text keeps its
      end token.

  Returns:
    A function of B strings that gives int32 [B, S].

  Raises:
    ValueError: if the files or transformers are missing.
  """
  folder = on_disk(folder)
  if not any(all((folder / f).is_file() for f in some) for some in TOKENIZER):
    raise ValueError(
      f"{folder} has no tokenizer.json, nor vocab.json and merges.txt; copy "
      "them there from openai/clip-vit-large-patch14, all CLIPs share them"
    )
  try:
    # which reads tokenizer.json alone in every release of transformers
    from transformers import CLIPTokenizerFast
  except ImportError:
    raise ValueError(
      f"prompts are cut into tokens by transformers ({folder}), which is not "
      "installed; pip install 'dollar_jax[torch]'"
    ) from None
  tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)

  def tokenize(texts: Sequence[str]) -> np.ndarray:
    tokens = tokenizer(
      list(texts), padding="max_length", truncation=True, max_length=length
    )
    return np.array(tokens.input_ids, np.int32)

  return tokenize


def _files(path: Path) -> list[Path]:
  """The weight files at a path.

  Raises:
    ValueError: if there are none, or only pickles.
  """
  if path.suffix in PICKLES:
    raise ValueError(_why_no_pickle(path))
  if path.is_file():
    return [path]
  if not path.is_dir():
    raise ValueError(
      f"{path} does not exist; give a folder with config.json and "
      f"{STEM}.safetensors, or a .safetensors file"
    )
  index = path / f"{STEM}.safetensors.index.json"
  files = [path / f"{STEM}.safetensors"]
  if index.is_file():
    try:
      names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
      raise ValueError(f"{index} is damaged; copy it again") from None
    files = [path / name for name in sorted(names)]
  absent = [file.name for file in files if not file.is_file()]
  pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
  if absent and pickles and not index.is_file():
    raise ValueError(_why_no_pickle(pickles[0]))
  if absent:
    raise ValueError(f"{path} has no {absent[0]}; finish the download")
  return files


def _why_no_pickle(file: Path) -> str:
  out = file.with_suffix(".safetensors")
  if (file.parent / "config.json").is_file():
    out = file.with_name(f"{STEM}.safetensors")
  return (
    f"{file} is a pickle, which can run any code and is not read; where you "
    f'trust it, convert it: python -c "{CONVERT}" '
    f"{shlex.join(map(str, (file, out)))}"
  )


def _describe(file: Path, key: str, view: Any) -> LazyTensor:
  if view.get_dtype() not in FLOATS:
    raise ValueError(
      f"{file} holds {key} as {view.get_dtype()}; only float32, float16 and "
      "bfloat16 weights can be read: store the model as one of these"
    )

  def read() -> np.ndarray:
    with safetensors.safe_open(file, framework="numpy") as opened:
      return opened.get_tensor(key)

  return LazyTensor(tuple(view.get_shape()), FLOATS[view.get_dtype()], read)


def _sizes(tensors: Mapping[str, Any], tower: str) -> dict[str, int]:
  """Fields of a tower's config that the blocks of a tower tell."""
  prefix = rf"{re.escape(tower)}\.resblocks\.(\d+)\."
  found = (re.match(prefix, key) for key in tensors)
  layers = 1 + max(int(match[1]) for match in found if match)
  inner, width = tensors[f"{tower}.resblocks.0.mlp.c_fc.weight"].shape
  return {
    "hidden_size": width,
    "intermediate_size": inner,
    "num_hidden_layers": layers,
  }


def _heads(width: int, head_dim: int, name: str) -> int:
  if width % head_dim:
    raise ValueError(
      f"a tower of width {width} has no whole number of heads of {head_dim}; "
      f"say how many with {name}"
    )
  return width // head_dim
