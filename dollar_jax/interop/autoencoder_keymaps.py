"""Where the tensors of diffusers' video autoencoders live in our trees.

Their blocks differ from one resolution to the next, so that the tables of
`keymaps` are written out from the config.
"""

from collections.abc import Mapping, Sequence

from dollar_jax.interop.keymaps import (
  LAYER_NORM,
  SAME,
  Form,
  Keymap,
  make_keymap,
)
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.wan_vae import WanVAEConfig

CONV_3D = {
  "weight": ("kernel", "o i t h w -> t h w i o"),
  "bias": ("bias", SAME),
}
FRAME_CONV = {  # a Conv2d, ours with an axis of time of length 1
  "weight": ("kernel", "o i h w -> 1 h w i o"),
  "bias": ("bias", SAME),
}
POINTWISE_3D = {  # a Conv3d of one pixel, ours a linear map
  "weight": ("kernel", "o i 1 1 1 -> i o"),
  "bias": ("bias", SAME),
}
POINTWISE_2D = {"weight": ("kernel", "o i 1 1 -> i o"), "bias": ("bias", SAME)}
CHANNEL_NORM = {"gamma": ("weight", "c 1 1 1 -> c")}
FRAME_NORM = {"gamma": ("weight", "c 1 1 -> c")}

VAE_RESNET = (
  ("norm1", "norm1", CHANNEL_NORM),
  ("conv1", "conv1/conv", CONV_3D),
  ("norm2", "norm2", CHANNEL_NORM),
  ("conv2", "conv2/conv", CONV_3D),
)
VAE_ENDS = (
  ("conv_in", "conv_in/conv", CONV_3D),
  ("norm_out", "norm_out", CHANNEL_NORM),
  ("conv_out", "conv_out/conv", CONV_3D),
  ("mid_block.attentions.0.norm", "mid_block/attention_0/norm", FRAME_NORM),
  (
    "mid_block.attentions.0.to_qkv",
    "mid_block/attention_0/to_qkv",
    POINTWISE_2D,
  ),
  ("mid_block.attentions.0.proj", "mid_block/attention_0/proj", POINTWISE_2D),
)
"""Rows of a residual block, and of both ends of an encoder or decoder, of
diffusers' `AutoencoderKLWan`; see `wan_vae_keymap`."""


def wan_vae_keymap(config: WanVAEConfig) -> Keymap:
  """The keymap of a Wan autoencoder: a tree of "encoder" and "decoder"."""
  table: list[tuple[str, str, Mapping]] = [
    ("quant_conv", "encoder/quant_conv", POINTWISE_3D),
    ("post_quant_conv", "decoder/post_quant_conv", POINTWISE_3D),
  ]

  def add(theirs: str, ours: str, rows: Sequence) -> None:
    table.extend((f"{theirs}.{t}", f"{ours}/{o}", kind) for t, o, kind in rows)

  def add_resnet(theirs: str, ours: str, changes: bool) -> None:
    shortcut = ("conv_shortcut", "conv_shortcut", POINTWISE_3D)
    add(theirs, ours, [*VAE_RESNET, shortcut] if changes else VAE_RESNET)

  def add_sample(theirs: str, ours: str, time: str | None) -> None:
    add(theirs, ours, [("resample.1", "resample", FRAME_CONV)])
    if time:
      add(theirs, ours, [("time_conv", time, CONV_3D)])

  for part in ("encoder", "decoder"):
    add(part, part, VAE_ENDS)
    middle = f"{part}.mid_block", f"{part}/mid_block"
    for i in range(2):
      add_resnet(f"{middle[0]}.resnets.{i}", f"{middle[1]}/resnet_{i}", False)

  last, width, index = len(config.dim_mult) - 1, 1, 0
  for i, factor in enumerate(config.dim_mult):
    block = f"encoder.down_blocks.{i}"
    for j in range(config.num_res_blocks):
      flat = f"encoder.down_blocks.{index + j}"
      theirs = f"{block}.resnets.{j}" if config.is_residual else flat
      add_resnet(theirs, f"encoder/down_{i}_resnet_{j}", width != factor)
      width = factor
    index += config.num_res_blocks
    if i < last:
      flat = f"encoder.down_blocks.{index}"
      theirs = f"{block}.downsampler" if config.is_residual else flat
      time = "time_conv" if config.temperal_downsample[i] else None
      add_sample(theirs, f"encoder/down_{i}_sample", time)
      index += 1

  factors = config.dim_mult[::-1]
  width = 2 * factors[0]  # in halves: 2.1 halves it where it upsamples
  for i, factor in enumerate(factors):
    block = f"decoder.up_blocks.{i}"
    for j in range(config.num_res_blocks + 1):
      changes = width != 2 * factor
      add_resnet(f"{block}.resnets.{j}", f"decoder/up_{i}_resnet_{j}", changes)
      width = 2 * factor
    if i < last:
      theirs = "upsampler" if config.is_residual else "upsamplers.0"
      time = config.temperal_downsample[::-1][i]
      add_sample(
        f"{block}.{theirs}",
        f"decoder/up_{i}_sample",
        "time_conv/conv" if time else None,
      )
      width = width if config.is_residual else factor
  return make_keymap("AutoencoderKLWan", tuple(table), 0, False, {})


def cogvideox_vae_keymap(config: CogVideoXVAEConfig) -> Keymap:
  """The keymap of a CogVideoX autoencoder: "encoder" and "decoder"."""
  spatial = (
    ("norm_layer", "norm_layer", LAYER_NORM),
    ("conv_y.conv", "conv_y", POINTWISE_3D),
    ("conv_b.conv", "conv_b", POINTWISE_3D),
  )
  plain = (("", "norm_layer", LAYER_NORM),)
  table: list[tuple[str, str, Mapping]] = []

  def add(theirs: str, ours: str, rows: Sequence) -> None:
    table.extend(
      (f"{theirs}.{t}".rstrip("."), f"{ours}/{o}", kind) for t, o, kind in rows
    )

  def add_resnet(theirs: str, ours: str, changes: bool) -> None:
    norm = plain if theirs.startswith("encoder") else spatial
    for i in (1, 2):
      add(f"{theirs}.norm{i}", f"{ours}/norm{i}", norm)
      add(theirs, ours, [(f"conv{i}.conv", f"conv{i}/conv", CONV_3D)])
    if changes:
      add(theirs, ours, [("conv_shortcut", "conv_shortcut", POINTWISE_3D)])

  add("encoder", "encoder", [("norm_out", "norm_out", LAYER_NORM)])
  add("decoder.norm_out", "decoder/norm_out", spatial)
  widths = config.block_out_channels
  for part, level, kinds, sizes, layers in (
    ("encoder", "down", "downsamplers", widths, config.layers_per_block),
    ("decoder", "up", "upsamplers", widths[::-1], config.layers_per_block + 1),
  ):
    for name in ("conv_in", "conv_out"):
      add(part, part, [(f"{name}.conv", f"{name}/conv", CONV_3D)])
    for j in range(2):
      theirs = f"{part}.mid_block.resnets.{j}"
      add_resnet(theirs, f"{part}/mid_resnet_{j}", False)
    width = sizes[0]
    for i, size in enumerate(sizes):
      block = f"{part}.{level}_blocks.{i}"
      for j in range(layers):
        ours = f"{part}/{level}_{i}_resnet_{j}"
        add_resnet(f"{block}.resnets.{j}", ours, width != size)
        width = size
      if i < len(sizes) - 1:
        rows = [(f"{kinds}.0.conv", f"{level}_{i}_sample/conv", FRAME_CONV)]
        add(block, part, rows)
  return make_keymap("AutoencoderKLCogVideoX", tuple(table), 0, False, {})


AUTOENCODERS = {
  "AutoencoderKLWan": Form(
    name="AutoencoderKLWan",
    config=WanVAEConfig,
    keymap=wan_vae_keymap,
    fixed={"attn_scales": [], "dropout": 0.0},
    optional=(
      "decoder_base_dim",
      "is_residual",
      "in_channels",
      "out_channels",
      "patch_size",
      "scale_factor_spatial",
      "scale_factor_temporal",
    ),
  ),
  "AutoencoderKLCogVideoX": Form(
    name="AutoencoderKLCogVideoX",
    config=CogVideoXVAEConfig,
    keymap=cogvideox_vae_keymap,
    fixed={
      "act_fn": "silu",
      "down_block_types": ["CogVideoXDownBlock3D"] * 4,
      "up_block_types": ["CogVideoXUpBlock3D"] * 4,
      "latents_mean": None,
      "latents_std": None,
      "shift_factor": None,
    },
    # what its own tiling and half precision go by
    ignored={"force_upcast": True, "sample_height": 480, "sample_width": 720},
  ),
}
"""Autoencoder classes that can be read and written, by diffusers' name."""
