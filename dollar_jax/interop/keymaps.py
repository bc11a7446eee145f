"""Where each PyTorch tensor lives in our trees: one table an architecture.

A table is a list of modules: torch prefix, our prefix, and what kind of layer
it is. The kind says which tensors the layer has and how their axes move, as
an einops pattern from torch's layout to ours; read from right to left it is
the way back, so one table serves both directions. An `Architecture` adds how
the fields of config.json become our config.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import einops
import flax.linen as nn
import numpy as np

from dollar_jax.models.cogvideox import CogVideoXTransformer
from dollar_jax.models.configs import CogVideoXConfig, WanConfig
from dollar_jax.models.wan import WanTransformer

SAME = ""
"""The layout of a tensor that is the same on both sides."""

LINEAR = {"weight": ("kernel", "n m -> m n"), "bias": ("bias", SAME)}
LAYER_NORM = {"weight": ("weight", SAME), "bias": ("bias", SAME)}
RMS_NORM = {"weight": ("weight", SAME)}
TABLE = {"": ("", "1 n d -> n d")}
PATCHES = {  # a Conv3d whose stride is its kernel, ours a linear map of patches
  "weight": ("kernel", "n c pt ph pw -> (pt ph pw c) n"),
  "bias": ("bias", SAME),
}
FRAME_PATCHES = {  # the same as a Conv2d
  "weight": ("kernel", "n c ph pw -> (ph pw c) n"),
  "bias": ("bias", SAME),
}
FLAT_PATCHES = {  # the same as a Linear over channels first
  "weight": ("kernel", "n (c pt ph pw) -> (pt ph pw c) n"),
  "bias": ("bias", SAME),
}
PIXELS = {  # a Linear whose outputs are a patch, channels first
  "weight": ("kernel", "(c pt ph pw) m -> m (pt ph pw c)"),
  "bias": ("bias", "(c pt ph pw) -> (pt ph pw c)"),
}

WAN = (
  ("patch_embedding", "patch_embedding", PATCHES),
  ("condition_embedder.time_embedder.linear_1", "time_embedder/up", LINEAR),
  ("condition_embedder.time_embedder.linear_2", "time_embedder/down", LINEAR),
  ("condition_embedder.time_proj", "time_proj", LINEAR),
  ("condition_embedder.text_embedder.linear_1", "text_embedder/up", LINEAR),
  ("condition_embedder.text_embedder.linear_2", "text_embedder/down", LINEAR),
  ("scale_shift_table", "scale_shift_table", TABLE),
  ("proj_out", "proj_out", LINEAR),
  ("blocks.{i}.scale_shift_table", "{block}/scale_shift_table", TABLE),
  ("blocks.{i}.attn1.to_q", "{block}/attn1/to_q", LINEAR),
  ("blocks.{i}.attn1.to_k", "{block}/attn1/to_k", LINEAR),
  ("blocks.{i}.attn1.to_v", "{block}/attn1/to_v", LINEAR),
  ("blocks.{i}.attn1.to_out.0", "{block}/attn1/to_out", LINEAR),
  ("blocks.{i}.attn1.norm_q", "{block}/attn1/norm_q", RMS_NORM),
  ("blocks.{i}.attn1.norm_k", "{block}/attn1/norm_k", RMS_NORM),
  ("blocks.{i}.attn2.to_q", "{block}/attn2/to_q", LINEAR),
  ("blocks.{i}.attn2.to_k", "{block}/attn2/to_k", LINEAR),
  ("blocks.{i}.attn2.to_v", "{block}/attn2/to_v", LINEAR),
  ("blocks.{i}.attn2.to_out.0", "{block}/attn2/to_out", LINEAR),
  ("blocks.{i}.attn2.norm_q", "{block}/attn2/norm_q", RMS_NORM),
  ("blocks.{i}.attn2.norm_k", "{block}/attn2/norm_k", RMS_NORM),
  ("blocks.{i}.ffn.net.0.proj", "{block}/ffn/up", LINEAR),
  ("blocks.{i}.ffn.net.2", "{block}/ffn/down", LINEAR),
)
"""diffusers' `WanTransformer3DModel` ⇄ `models.wan.WanTransformer`."""

WAN_CROSS_ATTENTION_NORM = (("blocks.{i}.norm2", "{block}/norm2", LAYER_NORM),)
"""Rows of a Wan transformer whose config has `cross_attn_norm`."""

WAN_IMAGE = (
  (
    "condition_embedder.image_embedder.norm1",
    "image_embedder/norm1",
    LAYER_NORM,
  ),
  (
    "condition_embedder.image_embedder.ff.net.0.proj",
    "image_embedder/ff/up",
    LINEAR,
  ),
  (
    "condition_embedder.image_embedder.ff.net.2",
    "image_embedder/ff/down",
    LINEAR,
  ),
  (
    "condition_embedder.image_embedder.norm2",
    "image_embedder/norm2",
    LAYER_NORM,
  ),
  ("blocks.{i}.attn2.add_k_proj", "{block}/attn2/add_k_proj", LINEAR),
  ("blocks.{i}.attn2.add_v_proj", "{block}/attn2/add_v_proj", LINEAR),
  ("blocks.{i}.attn2.norm_added_k", "{block}/attn2/norm_added_k", RMS_NORM),
)
"""Rows of a Wan transformer that takes an image."""

WAN_IMAGE_POSITIONS = (
  (
    "condition_embedder.image_embedder.pos_embed",
    "image_embedder/pos_embed",
    TABLE,
  ),
)
"""Rows of one that takes a first and a last image."""

COGVIDEOX = (
  ("patch_embed.text_proj", "text_proj", LINEAR),
  ("time_embedding.linear_1", "time_embedder/up", LINEAR),
  ("time_embedding.linear_2", "time_embedder/down", LINEAR),
  ("norm_final", "norm_final", LAYER_NORM),
  ("norm_out.linear", "norm_out_linear", LINEAR),
  ("norm_out.norm", "norm_out", LAYER_NORM),
  ("proj_out", "proj_out", PIXELS),
  ("transformer_blocks.{i}.norm1.linear", "{block}/norm1/linear", LINEAR),
  ("transformer_blocks.{i}.norm1.norm", "{block}/norm1/norm", LAYER_NORM),
  ("transformer_blocks.{i}.norm2.linear", "{block}/norm2/linear", LINEAR),
  ("transformer_blocks.{i}.norm2.norm", "{block}/norm2/norm", LAYER_NORM),
  ("transformer_blocks.{i}.attn1.norm_q", "{block}/attn1/norm_q", LAYER_NORM),
  ("transformer_blocks.{i}.attn1.norm_k", "{block}/attn1/norm_k", LAYER_NORM),
  ("transformer_blocks.{i}.attn1.to_out.0", "{block}/attn1/to_out", LINEAR),
  ("transformer_blocks.{i}.ff.net.0.proj", "{block}/ff/up", LINEAR),
  ("transformer_blocks.{i}.ff.net.2", "{block}/ff/down", LINEAR),
)
"""diffusers' `CogVideoXTransformer3DModel` ⇄
`models.cogvideox.CogVideoXTransformer`; see `cogvideox_keymap`."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One torch tensor and its place.

  Attributes:
    torch: its key in the state dict.
    path: its leaf in our tree.
    layer: its index on the leaf's leading axis; None if it is the whole leaf.
    layout: einops pattern from torch's axes to ours, or `SAME`.
    sizes: lengths of the axes that `layout` merges.
  """

  torch: str
  path: tuple[str, ...]
  layer: int | None
  layout: str
  sizes: tuple[tuple[str, int], ...] = ()

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """Moves a tensor's axes from torch's layout to ours."""
    if self.layout == SAME:
      return array
    return einops.rearrange(array, self.layout, **self._sizes())

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Moves one layer's axes from our layout to torch's."""
    if self.layout == SAME:
      return array
    theirs, ours = self.layout.split("->")
    return einops.rearrange(array, f"{ours} -> {theirs}", **self._sizes())

  def torch_shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the torch tensor, given the shape of our (stacked) leaf."""
    shape = leaf_shape if self.layer is None else leaf_shape[1:]
    # a broadcast scalar has a shape but (almost) no memory
    return self.to_torch(np.broadcast_to(np.int8(0), shape)).shape

  def _sizes(self) -> dict[str, int]:
    names = re.findall(r"\w+", self.layout)
    return {k: n for k, n in self.sizes if k in names}


@dataclasses.dataclass(frozen=True)
class Keymap:
  """Every tensor of one model, each exactly once.

  Attributes:
    name: class name of the torch model, for messages.
    entries: in the order of the table, then of the layers.
  """

  name: str
  entries: tuple[Entry, ...]

  def by_path(self) -> dict[tuple[str, ...], list[Entry]]:
    """The entries of each leaf of our tree, in the order of the layers."""
    leaves: dict[tuple[str, ...], list[Entry]] = {}
    for entry in self.entries:
      leaves.setdefault(entry.path, []).append(entry)
    return leaves


def make_keymap(
  name: str,
  table: tuple[tuple[str, str, Mapping], ...],
  layers: int,
  scanned: bool,
  sizes: Mapping[str, int],
) -> Keymap:
  """Writes a table out for a number of layers.

  Args:
    name: class name of the torch model.
    table: rows of (torch prefix, our prefix, kind); `{i}` is the layer,
      `{block}` our name for it.
    layers: number of blocks.
    scanned: whether our blocks are stacked under "blocks" on a leading axis
      (`nn.scan`) or lie in "block_0", "block_1" …
    sizes: lengths of the axes that a layout merges, by name.
  """
  entries = []
  for torch_prefix, our_prefix, kind in table:
    per_layer = "{i}" in torch_prefix
    for i in range(layers) if per_layer else (None,):
      block = "blocks" if scanned else f"block_{i}"
      ours = our_prefix.format(block=block)
      for torch_leaf, (our_leaf, layout) in kind.items():
        torch_key = f"{torch_prefix.format(i=i)}.{torch_leaf}".rstrip(".")
        path = tuple(f"{ours}/{our_leaf}".rstrip("/").split("/"))
        layer = i if scanned else None
        entries.append(
          Entry(torch_key, path, layer, layout, tuple(sizes.items()))
        )
  keys = [entry.torch for entry in entries]
  assert len(set(keys)) == len(keys), f"{name}: a torch key is listed twice"
  return Keymap(name, tuple(entries))


def wan_keymap(config: WanConfig) -> Keymap:
  """The keymap of a Wan transformer of this config."""
  table = WAN
  if config.cross_attn_norm:
    table = table + WAN_CROSS_ATTENTION_NORM
  if config.image_dim is not None:
    table = table + WAN_IMAGE
  if config.pos_embed_seq_len is not None:
    table = table + WAN_IMAGE_POSITIONS
  frames, rows, columns = config.patch_size
  return make_keymap(
    "WanTransformer3DModel",
    table,
    config.num_layers,
    config.scan,
    {"pt": frames, "ph": rows, "pw": columns},
  )


def cogvideox_keymap(config: CogVideoXConfig) -> Keymap:
  """The keymap of a CogVideoX transformer of this config."""
  weight_only = {"weight": LINEAR["weight"]}
  patches = FRAME_PATCHES if config.patch_size_t is None else FLAT_PATCHES
  if not config.has_patch_bias:
    patches = {"weight": patches["weight"]}
  projection = LINEAR if config.attention_bias else weight_only
  table = (("patch_embed.proj", "patch_embed", patches), *COGVIDEOX)
  for name in ("to_q", "to_k", "to_v"):
    prefix = f"attn1.{name}", f"attn1/{name}"
    row = f"transformer_blocks.{{i}}.{prefix[0]}", f"{{block}}/{prefix[1]}"
    table = (*table, (*row, projection))
  frames, rows, columns = config.patch
  return make_keymap(
    "CogVideoXTransformer3DModel",
    table,
    config.num_layers,
    config.scan,
    {"pt": frames, "ph": rows, "pw": columns},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """How one diffusers class maps to ours: its config.json and its tensors.

  Attributes:
    name: diffusers class.
    config: our config dataclass, fields named as in config.json.
    keymap: config → keymap.
    ours: config fields that config.json does not hold.
    fixed: fields of config.json that must have this value, and are written.
    ignored: fields of config.json that change no number, as they are written.
    optional: fields that older config.json files lack, with their defaults.
    unused: parts of keys that old weight files have and no module reads.
  """

  name: str
  config: type
  keymap: Callable[[Any], Keymap]
  ours: tuple[str, ...] = ()
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  optional: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()

  def is_read(self, key: str) -> bool:
    """Whether a module reads the tensor of this torch key."""
    return not any(part in key for part in self.unused)

  def to_json(self, config: Any) -> dict[str, Any]:
    """The fields of config.json for one of our configs."""
    values = dataclasses.asdict(config)
    for field in self.ours:
      del values[field]
    return values | dict(self.fixed) | dict(self.ignored)

  def from_json(self, raw: Mapping[str, Any], **options: Any) -> Any:
    """Our config for the fields of config.json; the inverse of `to_json`.

    Args:
      raw: the fields; names that start with "_" are skipped.
      **options: values of the fields in `ours`.

    Raises:
      ValueError: for a field that is missing, of the wrong type, unknown, or
        of a value that this library does not implement.
    """
    kinds = {f.name: f.default for f in dataclasses.fields(self.config)}
    strange = sorted(options.keys() - set(self.ours))
    if strange:
      raise ValueError(
        f"model option {strange[0]!r} is unknown; use one of {self.ours}"
      )
    for field in self.ours:
      del kinds[field]
    raw = {k: v for k, v in raw.items() if not k.startswith("_")}
    raw = {k: kinds[k] for k in self.optional} | raw
    missing = sorted(kinds.keys() - raw.keys())
    if missing:
      raise ValueError(f"config.json of {self.name} lacks {missing}")
    for field, value in raw.items():
      if field in kinds or field in self.ignored:
        continue
      # a feature that is switched off needs no support
      if value != self.fixed.get(field) and value is not False:
        raise ValueError(
          f"{field}={value!r} in config.json is not supported for {self.name}"
          f"; this library has {field}={self.fixed.get(field)!r}"
        )
    values = {k: _parse(k, raw[k], kind) for k, kind in kinds.items()}
    return self.config(**values, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Form):
  """A `Form` of a transformer.

  Attributes:
    pipeline: diffusers class of the pipeline, for model_index.json.
    module: our Linen class; takes `config` alone.
    parts: what that pipeline holds beside transformer and scheduler.
    extras: config → further entries of model_index.json.
  """

  pipeline: str
  module: type[nn.Module]
  parts: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")
  extras: Callable[[Any], dict[str, Any]] = lambda config: {}


def _parse(field: str, value: Any, like: Any) -> Any:
  """Checks one JSON value against a default of the same type."""
  if isinstance(like, tuple):
    good = isinstance(value, list | tuple)
    good = good and all(_is_like(item, like[0]) for item in value)
    value = tuple(value) if good else value
  elif like is None:
    good = value is None or (type(value) is int and value > 0)
  elif type(like) is int:
    good = type(value) is int and value > 0
  elif type(like) is float:
    good = type(value) in (int, float) and value > 0
  else:
    good = type(value) is type(like)
  if not good:
    raise ValueError(
      f"{field}={value!r} in config.json is not usable; it must be like {like}"
    )
  return value


def _is_like(item: Any, like: Any) -> bool:
  """Whether an item of a JSON list is like that of a default."""
  if type(like) is float:
    return type(item) in (int, float)
  return type(item) is type(like) and (type(item) is bool or item > 0)


TRANSFORMERS = {
  "WanTransformer3DModel": Architecture(
    name="WanTransformer3DModel",
    pipeline="WanPipeline",
    module=WanTransformer,
    config=WanConfig,
    keymap=wan_keymap,
    ours=("dtype", "remat", "scan", "attention", "context"),
    fixed={
      "qk_norm": "rms_norm_across_heads",
    },
    ignored={"rope_max_seq_len": 1024},  # a table's length; ours has no table
    optional=("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"),
    unused=(".norm_added_q.",),
    parts=("vae", "text_encoder", "tokenizer", "transformer_2"),
    # Wan 2.2 5B has a time per token, its pipeline is told so
    extras=lambda c: {"expand_timesteps": c.in_channels == 48},
  ),
  "CogVideoXTransformer3DModel": Architecture(
    name="CogVideoXTransformer3DModel",
    pipeline="CogVideoXPipeline",
    module=CogVideoXTransformer,
    config=CogVideoXConfig,
    keymap=cogvideox_keymap,
    ours=("dtype", "remat", "scan", "attention", "context"),
    fixed={
      "activation_fn": "gelu-approximate",
      "timestep_activation_fn": "silu",
      "flip_sin_to_cos": True,
      "freq_shift": 0,
      "norm_elementwise_affine": True,
      "ofs_embed_dim": None,
      "use_learned_positional_embeddings": False,
    },
    ignored={"dropout": 0.0},
    optional=("patch_size_t", "patch_bias"),
  ),
}
"""Transformer classes that can be read and written, by diffusers' name."""
