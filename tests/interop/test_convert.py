"""Keymaps and conversion: bits, shapes and the one error."""

import dataclasses

import jax
import numpy as np
import pytest

from dollar_jax.interop import convert, keymaps
from dollar_jax.interop.networks import form_of
from dollar_jax.models.denoiser import make_wan
from tests.interop.conftest import CONFIG
from tests.tiny import COGVIDEOX, cogvideox, random_params

DTYPES = ["float32", "float16", "bfloat16"]


def same_bits(a, b):
  return (
    a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
  "denoiser",
  [
    make_wan(CONFIG),
    make_wan(dataclasses.replace(CONFIG, cross_attn_norm=False)),
    cogvideox(),
    cogvideox(dataclasses.replace(COGVIDEOX, patch_size_t=2)),
  ],
)
def test_round_trip_keeps_every_bit(dtype, scan, denoiser):
  denoiser = denoiser.with_config(scan=scan)
  params = random_params(denoiser, dtype)
  keymap = form_of(denoiser.module).keymap(denoiser.config)
  tensors = convert.tree_to_torch(params, keymap)
  back = convert.torch_to_tree(tensors, keymap, params)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  assert all(
    jax.tree.leaves(jax.tree.map(same_bits, back, params))  # exact, NaN-proof
  )
  assert all(x.flags.c_contiguous for x in tensors.values())


def test_scanned_and_unscanned_trees_are_the_same_state_dict(tiny):
  scanned = keymaps.wan_keymap(CONFIG)
  config = dataclasses.replace(CONFIG, scan=False)
  looped = keymaps.wan_keymap(config)
  tensors = convert.tree_to_torch(tiny.params, scanned)
  tree = convert.torch_to_tree(tensors, looped, random_params(make_wan(config)))
  for i in range(CONFIG.num_layers):
    np.testing.assert_array_equal(
      tree[f"block_{i}"]["attn1"]["to_q"]["kernel"],
      tiny.params["blocks"]["attn1"]["to_q"]["kernel"][i],
    )


def test_layouts_are_torch_s(tiny):
  tensors = convert.tree_to_torch(tiny.params, keymaps.wan_keymap(CONFIG))
  width, channels = CONFIG.width, CONFIG.in_channels
  conv = tensors["patch_embedding.weight"]
  assert conv.shape == (width, channels, 1, 2, 2)
  kernel = np.asarray(tiny.params["patch_embedding"]["kernel"])
  # our rows run over the patch first, then over channels
  row = (1 * 2 + 0) * channels + 3
  np.testing.assert_array_equal(conv[:, 3, 0, 1, 0], kernel[row])
  up = tensors["blocks.1.ffn.net.0.proj.weight"]
  np.testing.assert_array_equal(
    up, np.asarray(tiny.params["blocks"]["ffn"]["up"]["kernel"])[1].T
  )
  assert tensors["blocks.0.scale_shift_table"].shape == (1, 6, width)


def test_one_error_names_everything_that_is_wrong(tiny):
  keymap = keymaps.wan_keymap(CONFIG)
  tensors = convert.tree_to_torch(tiny.params, keymap)
  del tensors["proj_out.bias"]
  tensors["lora.weight"] = np.zeros(3, np.float32)
  tensors["patch_embedding.weight"] = np.zeros((24, 4, 1, 1, 1), np.float32)
  key = "blocks.1.attn2.to_k.weight"
  tensors[key] = tensors[key].astype(np.float16)
  with pytest.raises(ValueError) as error:
    convert.torch_to_tree(tensors, keymap, tiny.params)
  message = str(error.value)
  assert "1 missing: proj_out.bias" in message
  assert "1 extra: lora.weight" in message
  assert (
    "1 mis-shaped: patch_embedding.weight is (24, 4, 1, 1, 1), "
    "expected (24, 4, 1, 2, 2)" in message
  )
  assert "blocks/attn2/to_k/kernel (float16, float32)" in message
  assert "\n" not in message


def test_a_long_list_is_cut_and_counted(tiny):
  keymap = keymaps.wan_keymap(CONFIG)
  total = len(keymap.entries)
  with pytest.raises(ValueError, match=f"{total} missing: ") as error:
    convert.torch_to_tree({}, keymap, tiny.params)
  assert f"and {total - convert.SHOWN} more" in str(error.value)
  assert len(str(error.value)) < 600


def test_parameters_of_another_model_are_refused(tiny):
  wider = dataclasses.replace(CONFIG, num_layers=3, ffn_dim=28)
  keymap = keymaps.wan_keymap(wider)
  with pytest.raises(ValueError, match=r"blocks/attn1/norm_k/weight is \(2, "):
    convert.tree_to_torch(tiny.params, keymap)
  broken = {k: v for k, v in tiny.params.items() if k != "proj_out"}
  broken["head"] = {"kernel": np.zeros(2)}
  with pytest.raises(ValueError) as error:
    convert.tree_to_torch(broken, keymaps.wan_keymap(CONFIG))
  assert "2 missing: proj_out/bias, proj_out/kernel" in str(error.value)
  assert "1 extra: head/kernel" in str(error.value)


def test_a_template_checks_every_shape(tiny):
  template = random_params(make_wan(dataclasses.replace(CONFIG, ffn_dim=28)))
  with pytest.raises(ValueError, match=r"3 mis-shaped: blocks/ffn/down"):
    convert.tree_to_torch(tiny.params, keymaps.wan_keymap(CONFIG), template)


def test_config_fields_survive_config_json():
  wan = keymaps.TRANSFORMERS["WanTransformer3DModel"]
  raw = wan.to_json(CONFIG)
  assert "scan" not in raw
  assert raw["qk_norm"] == "rms_norm_across_heads"
  assert wan.from_json(raw) == CONFIG
  looped = wan.from_json(raw | {"_name": 1, "rope_max_seq_len": 9}, scan=False)
  assert looped == dataclasses.replace(CONFIG, scan=False)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"image_dim": 1280}, "with image_dim 1280 it must be 24"),
    ({"qk_norm": None}, "qk_norm=None .* not supported"),
    ({"new_trick": 2}, "new_trick=2 .* not supported"),
    ({"num_layers": "two"}, "num_layers='two' .* not usable"),
    ({"num_layers": True}, "num_layers=True .* not usable"),
    ({"patch_size": [1, 2]}, r"patch_size is \(1, 2\); give frames"),
    ({"patch_size": [1, 2, 0]}, r"patch_size=\[1, 2, 0\] .* not usable"),
    ({"attention_head_dim": 7}, "even number"),
  ],
)
def test_fields_we_cannot_honour_are_named(change, message):
  wan = keymaps.TRANSFORMERS["WanTransformer3DModel"]
  with pytest.raises(ValueError, match=message):
    wan.from_json(wan.to_json(CONFIG) | change)


def test_a_lacking_field_is_named():
  wan = keymaps.TRANSFORMERS["WanTransformer3DModel"]
  raw = wan.to_json(CONFIG)
  del raw["ffn_dim"]
  with pytest.raises(ValueError, match=r"lacks \['ffn_dim'\]"):
    wan.from_json(raw)


def test_cast_leaves_integers_alone():
  tree = {"w": np.ones(2, np.float16), "n": np.ones(2, np.int32)}
  out = convert.cast(tree, "float32")
  assert out["w"].dtype == np.float32
  assert out["n"].dtype == np.int32
  assert convert.cast(tree, None) is tree
