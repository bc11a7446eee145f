"""CLIP against transformers' `CLIPModel`, on random weights."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dollar_jax.interop.clip import config_from_json
from dollar_jax.interop.clip_keymaps import clip_from_torch, clip_template
from dollar_jax.models import clip, clip_images
from dollar_jax.models.clip import (
  CLIP,
  CLIPConfig,
  CLIPTextConfig,
  CLIPVisionConfig,
)

try:
  import torch
  import transformers
except ImportError:
  torch = transformers = None

LETTERBOXED = pathlib.Path(__file__).with_name("golden_letterbox.safetensors")

WORDS, END = 30, 11
BASE = {  # heads of 64, as ViT-B/32
  "vision_config": {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 32,
  },
  "text_config": {
    "hidden_size": 128,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 10,
    "eos_token_id": END,
  },
  "projection_dim": 24,
}
HUGE = {  # heads of 80 over patches of 14, as ViT-H/14
  "vision_config": BASE["vision_config"]
  | {"hidden_size": 160, "image_size": 42, "patch_size": 14},
  "text_config": BASE["text_config"] | {"hidden_size": 64},
  "projection_dim": 40,
}
LAYOUTS = {"B/32": BASE, "H/14": HUGE}

IDS = np.array(
  [  # the end token, twice; its neighbours of a higher id; the last place
    [1, 4, 20, END, END, 3, END, 0],
    [1, 29, 5, 7, 13, END, 2, 28],
    [1, 12, 3, 9, 25, 6, 8, END],
  ],
  np.int32,
)


def change(layout, **fields):
  """A layout with fields of both towers changed."""
  towers = {
    name: section | fields if isinstance(section, dict) else section
    for name, section in layout.items()
  }
  known = {field.name for field in dataclasses.fields(CLIPVisionConfig)}
  vision = towers["vision_config"]
  towers["vision_config"] = {k: v for k, v in vision.items() if k in known}
  return towers


def make_torch(raw):
  """A CLIPModel whose every parameter matters."""
  torch.manual_seed(0)
  model = transformers.CLIPModel(transformers.CLIPConfig(**raw)).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape)
      if "norm" in name and name.endswith("weight"):
        noise = 1 + 0.3 * noise
      elif p.ndim > 1 and "embedding" not in name:
        noise = 1.5 * noise * p[0].numel() ** -0.5
      elif p.ndim == 0:
        noise = torch.tensor(1.7)
      p.copy_(noise)
  return model


def state_of(model):
  return {k: v.numpy() for k, v in model.state_dict().items()}


def pixels_for(raw, count=4):
  size = raw["vision_config"]["image_size"]
  rng = np.random.default_rng(1)
  return rng.standard_normal((count, size, size, 3)).astype(np.float32)


def run_torch(model, pixels, ids, mask=None):
  """Features of images and texts, and logits."""
  theirs = {"input_ids": torch.from_numpy(ids).long()}
  if mask is not None:
    theirs["attention_mask"] = torch.from_numpy(mask).long()
  shown = {"pixel_values": torch.from_numpy(pixels).movedim(-1, 1)}
  with torch.no_grad():
    images = model.vision_model(**shown).pooler_output
    texts = model.text_model(**theirs).pooler_output
    logits = model(**shown, **theirs).logits_per_image
    out = model.visual_projection(images), model.text_projection(texts), logits
  return tuple(x.numpy() for x in out)


def run_ours(config, params, pixels, ids, mask=None):
  module = CLIP(config)

  @jax.jit
  def run(params, pixels, ids, mask):
    return (
      module.apply(params, pixels, method="image_features"),
      module.apply(params, ids, mask, method="text_features"),
      module.apply(params, pixels, ids, mask),
    )

  out = run({"params": params}, pixels, ids, mask)
  return tuple(np.asarray(x) for x in out)


@pytest.mark.torch
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_and_logits_equal_transformers(layout, activation):
  raw = change(LAYOUTS[layout], hidden_act=activation)
  model, config = make_torch(raw), config_from_json(raw)
  params = clip_from_torch(state_of(model), config)
  pixels = pixels_for(raw)
  wanted = run_torch(model, pixels, IDS)
  ours = run_ours(config, params, pixels, IDS)
  width = raw["projection_dim"]
  assert [x.shape for x in ours] == [(4, width), (3, width), (4, 3)]
  for a, b in zip(ours, wanted, strict=True):
    assert np.std(b) > 0.1  # else an absolute bound means nothing
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.torch
@pytest.mark.parametrize("end", [END, clip.HIGHEST_ID])
def test_texts_are_read_where_transformers_reads_them(end):
  raw = change(BASE, eos_token_id=end)
  model, config = make_torch(raw), config_from_json(raw)
  params = clip_from_torch(state_of(model), config)
  pixels = pixels_for(raw, 1)
  wanted = run_torch(model, pixels, IDS)[1]
  ours = run_ours(config, params, pixels, IDS)[1]
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)
  other = dataclasses.replace(
    config,
    text_config=dataclasses.replace(
      config.text_config, eos_token_id={END: 2, 2: END}[end]
    ),
  )
  elsewhere = run_ours(other, params, pixels, IDS)[1]
  assert (np.abs(elsewhere - ours).max(axis=1) > 0.1).all()


@pytest.mark.torch
def test_a_mask_hides_tokens_as_in_transformers():
  model, config = make_torch(BASE), config_from_json(BASE)
  params = clip_from_torch(state_of(model), config)
  pixels = pixels_for(BASE, 1)
  mask = np.ones(IDS.shape, bool)
  mask[:, 1:3] = False
  wanted = run_torch(model, pixels, IDS, mask)[1]
  ours = run_ours(config, params, pixels, IDS, mask)[1]
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)
  assert np.abs(ours - run_ours(config, params, pixels, IDS)[1]).min() > 1e-4


def random_params(config):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32),
    clip_template(config),
  )


def test_what_follows_the_end_of_a_text_changes_nothing():
  config = config_from_json(BASE)
  params = random_params(config)
  changed = IDS.copy()
  changed[0, 4:], changed[1, 6:] = 17, 16
  pixels = pixels_for(BASE, 1)
  one = run_ours(config, params, pixels, IDS)[1]
  np.testing.assert_array_equal(
    run_ours(config, params, pixels, changed)[1], one
  )
  changed[:, 2] = 19  # and what goes before it does
  other = run_ours(config, params, pixels, changed)[1]
  assert (np.abs(other - one).max(axis=1) > 1e-3).all()


def test_bfloat16_is_near_float32_and_returns_float32():
  config = config_from_json(BASE)
  params = random_params(config)
  pixels = pixels_for(BASE)
  exact = run_ours(config, params, pixels, IDS)
  half = dataclasses.replace(config, dtype="bfloat16")
  rough = run_ours(half, params, pixels, IDS)
  for a, b in zip(rough, exact, strict=True):
    assert a.dtype == np.float32
    error = np.abs(a - b).max() / np.abs(b).max()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize(
  "vision, text, features, millions",
  [  # the counts that transformers and OpenCLIP give for these models
    ((768, 3072, 12, 12, 32), (512, 2048, 12, 8), 512, 151.277313),
    ((1024, 4096, 24, 16, 14), (768, 3072, 12, 12), 768, 427.616513),
    ((1280, 5120, 32, 16, 14), (1024, 4096, 24, 16), 1024, 986.109441),
  ],
  ids=["B/32", "L/14", "H/14"],
)
def test_full_size_models_have_the_published_number_of_parameters(
  vision, text, features, millions
):
  names = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
  )
  config = CLIPConfig(
    CLIPVisionConfig(**dict(zip(names, vision, strict=True))),
    CLIPTextConfig(**dict(zip(names, text, strict=False))),
    features,
  )
  leaves = jax.tree.leaves(clip_template(config))
  assert sum(leaf.size for leaf in leaves) == round(millions * 1e6)


@pytest.mark.parametrize(
  "make, message",
  [
    (
      lambda: CLIPVisionConfig(num_attention_heads=7),
      "hidden_size 768 does not divide among num_attention_heads=7",
    ),
    (
      lambda: CLIPVisionConfig(patch_size=30),
      "image_size 224 does not divide into patches of patch_size=30",
    ),
    (
      lambda: CLIPTextConfig(hidden_act="relu"),
      (
        "hidden_act of a CLIP tower is 'relu'; use one of "
        r"\['gelu', 'quick_gelu'\]"
      ),
    ),
    (
      lambda: CLIPVisionConfig(image_size=[224, 224]),
      (
        r"image_size of a CLIP tower is \[224, 224\]; it must be a whole "
        "number of at least 1"
      ),
    ),
    (
      lambda: CLIPTextConfig(vocab_size=100),
      "eos_token_id is 49407, and vocab_size is 100; give the id of a token",
    ),
    (
      lambda: CLIPConfig(projection_dim=0),
      "projection_dim is 0; it must be a whole number of at least 1",
    ),
    (
      lambda: CLIPConfig(dtype="float64"),
      r"dtype is 'float64'; use one of \['float32', 'bfloat16'\]",
    ),
  ],
)
def test_configs_that_cannot_be_are_refused(make, message):
  with pytest.raises(ValueError, match=f"^{message}$"):
    make()


def test_inputs_of_another_shape_are_refused():
  config = config_from_json(BASE)
  module, params = CLIP(config), {"params": clip_template(config)}

  def run(method, shape, dtype):
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    run = functools.partial(module.apply, method=method)
    jax.eval_shape(run, params, inputs)

  with pytest.raises(
    ValueError,
    match=r"^pixels have shape \(2, 32, 64, 3\); this tower takes "
    r"\[B, 64, 64, 3\]",
  ):
    run("image_features", (2, 32, 64, 3), np.float32)
  with pytest.raises(
    ValueError,
    match=r"^a text has 11 tokens; this tower takes at most 10: cut the text",
  ):
    run("text_features", (1, 11), np.int32)
  with pytest.raises(
    ValueError,
    match=r"^frames are float16 \(1, 4, 4, 3\); CLIP takes uint8 or float32 "
    r"\[B, H, W, 3\]$",
  ):
    clip_images.preprocess(np.zeros((1, 4, 4, 3), np.float16), 4)
  with pytest.raises(ValueError, match=r"^frames are uint8 \(4, 4, 3\); CLIP"):
    clip_images.letterbox(np.zeros((4, 4, 3), np.uint8), 4)


preprocess = jax.jit(clip_images.preprocess, static_argnums=1)
letterbox = jax.jit(clip_images.letterbox, static_argnums=1)


@pytest.mark.torch
@pytest.mark.parametrize(
  "shape, size",
  [((64, 48), 32), ((48, 83), 32), ((90, 160), 56), ((20, 33), 32)],
)
def test_preprocessing_is_that_of_transformers_but_for_a_rare_level(
  shape, size
):
  """One of 255 levels in fewer than 1 of 500 values; measured: 1 in 1,100."""
  from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil,
  )

  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
  processor = CLIPImageProcessorPil(
    size={"shortest_edge": size}, crop_size={"height": size, "width": size}
  )
  shown = processor(images=list(frames), return_tensors="np").pixel_values
  ours = np.asarray(preprocess(frames, size))
  assert ours.shape == (3, size, size, 3)
  levels = (
    255 * np.array(clip_images.STD) * np.abs(ours - np.moveaxis(shown, 1, -1))
  )
  assert levels.max() < 1.01
  assert (levels > 0.01).mean() < 1 / 500


def test_preprocessing_resizes_as_pillow_and_cuts_the_middle():
  rng = np.random.default_rng(0)
  frame = rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)
  resized = Image.fromarray(frame).resize((28, 16), Image.Resampling.BICUBIC)
  wanted = np.asarray(resized)[:, 6:22].astype(float)
  ours = np.asarray(preprocess(frame[None], 16))[0]
  levels = 255 * (ours * np.array(clip_images.STD) + np.array(clip_images.MEAN))
  assert np.abs(levels - wanted).max() < 1.01
  assert (np.abs(levels - wanted) > 0.01).mean() < 1 / 100


def test_letterbox_is_the_preprocessing_of_hpsv2():
  golden = safetensors.numpy.load_file(LETTERBOXED)
  shapes = [name for name in golden if name.endswith(".frame")]
  assert len(shapes) == 5
  for name in shapes:
    frame = golden[name]
    shown = np.moveaxis(golden[name.replace("frame", "shown")], 0, -1)
    ours = np.asarray(letterbox(frame[None], len(shown)))[0]
    np.testing.assert_allclose(ours, shown, rtol=0, atol=1e-5)
    if frame.shape[0] != frame.shape[1]:
      cut = np.asarray(preprocess(frame[None], len(shown)))[0]
      assert np.abs(cut - shown).max() > 1


def test_letterbox_keeps_the_edges_of_a_wide_frame():
  frame = np.zeros((1, 20, 40, 3), np.uint8)
  frame[:, :, :4] = frame[:, :, -4:] = 255
  ours = np.asarray(letterbox(frame, 20))[0] * np.array(clip_images.STD)
  ours += np.array(clip_images.MEAN)
  np.testing.assert_allclose(ours[:5], 0, atol=1e-6)
  np.testing.assert_allclose(ours[-5:], 0, atol=1e-6)
  assert ours[5:15, [0, -1]].min() > 0.9
  cut = np.asarray(preprocess(frame, 20))[0]
  assert np.ptp(cut, axis=(0, 1)).max() < 1e-6  # which sees nothing of them
