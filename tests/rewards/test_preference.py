"""Learnt rewards against the formulas that their authors published."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dollar_jax.interop.clip import config_from_json
from dollar_jax.interop.clip_keymaps import clip_from_torch, clip_to_torch
from dollar_jax.models.clip_images import letterbox, preprocess
from dollar_jax.rewards import base, clip_features, preference
from tests.interop.test_clip import save_tokenizer
from tests.models.test_clip import BASE, change, make_torch, state_of

try:
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  torch = None

SIZE = BASE["vision_config"]["image_size"]
P = BASE["projection_dim"]
PROMPTS = ["cab a", "d e f cab", "g", "", "b b b b b b b b b b b b"]
# of the network's own size, so that nothing is resized or cut
FRAMES = np.random.default_rng(0).integers(
  0, 256, (5, 4, SIZE, SIZE, 3), dtype=np.uint8
)
SOURCES = (preference.PICKSCORE, preference.HPSV2, preference.AESTHETIC)
HEAD = "head.safetensors"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
  """The Hugging Face cache, empty, and no variable set."""
  for source in SOURCES:
    monkeypatch.delenv(source.variable, raising=False)
  with contextlib.suppress(ImportError):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  return tmp_path / "hub"


def put(hub, name, folder):
  """Lays a model into the cache as a download would."""
  model = hub / f"models--{name.replace('/', '--')}"
  shutil.copytree(folder, model / "snapshots" / "abc")
  (model / "refs").mkdir()
  (model / "refs" / "main").write_text("abc")


def make_model(folder, **fields):
  """A tiny CLIPModel, saved with its tokeniser."""
  end = save_tokenizer(folder)["<|endoftext|>"]
  model = make_torch(change(BASE, eos_token_id=end, **fields))
  model.save_pretrained(folder)
  return model


def embed(model, folder):
  """Features of length 1 as transformers makes them: [B, F, P] and [B, P]."""
  from transformers import CLIPTokenizer
  from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil,
  )

  tokens = CLIPTokenizer.from_pretrained(folder)(
    PROMPTS, padding=True, truncation=True, max_length=10, return_tensors="pt"
  )
  processor = CLIPImageProcessorPil(
    size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
  )
  shown = processor(images=list(FRAMES.reshape(-1, SIZE, SIZE, 3)))
  pixels = torch.from_numpy(np.stack(shown["pixel_values"]))
  with torch.no_grad():
    images = model.visual_projection(model.vision_model(pixels).pooler_output)
    texts = model.text_projection(model.text_model(**tokens).pooler_output)
  images = images / torch.norm(images, dim=-1, keepdim=True)
  texts = texts / torch.norm(texts, dim=-1, keepdim=True)
  return images.reshape(*FRAMES.shape[:2], -1), texts


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(model, its folder, its features of images, of texts)."""
  folder = tmp_path_factory.mktemp("clip")
  model = make_model(folder)
  return model, folder, *embed(model, folder)


def make_head():
  """LAION's MLP as its code builds it, from P numbers instead of 768."""
  torch.manual_seed(0)
  nn = torch.nn
  head = nn.Sequential(
    nn.Linear(P, 1024),
    nn.Dropout(0.2),
    nn.Linear(1024, 128),
    nn.Dropout(0.2),
    nn.Linear(128, 64),
    nn.Dropout(0.1),
    nn.Linear(64, 16),
    nn.Linear(16, 1),
  )
  with torch.no_grad():  # so that scores differ as much as LAION's do
    for weight in head.parameters():
      weight.mul_(3.0)
  return head.eval()


def save_head(head, file):
  tensors = {f"layers.{k}": v.numpy() for k, v in head.state_dict().items()}
  safetensors.numpy.save_file(tensors, file)


@pytest.mark.torch
def test_pickscore_is_the_formula_of_its_model_card(saved, monkeypatch):
  model, folder, images, texts = saved
  with torch.no_grad():
    scores = [
      (model.logit_scale.exp() * (text @ frames.T))
      for text, frames in zip(texts, images, strict=True)
    ]
  wanted = torch.stack(scores).mean(1).numpy()
  assert np.std(wanted) > 0.1
  monkeypatch.setenv("DOLLAR_PICKSCORE", str(folder))
  reward = base.get_reward("pickscore")
  values = reward(FRAMES, PROMPTS)
  assert (values.shape, values.dtype) == ((5,), np.float32)
  np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5)
  assert (reward.kind, reward.uses_text, reward.num_frames) == (
    "image",
    True,
    4,
  )


@pytest.mark.torch
def test_hpsv2_is_the_cosine_of_its_package(saved, monkeypatch):
  _, folder, images, texts = saved
  wanted = [
    torch.diagonal(frames @ texts.T).numpy() for frames in images.unbind(1)
  ]
  monkeypatch.setenv("DOLLAR_HPSV2", str(folder))
  reward = base.get_reward("hpsv2")
  values = reward(FRAMES, PROMPTS)
  assert np.std(values) > 0.02
  np.testing.assert_allclose(values, np.mean(wanted, 0), rtol=0, atol=2e-5)
  assert (reward.kind, reward.uses_text) == ("image", True)


@pytest.mark.torch
@pytest.mark.parametrize(
  "name, prepare, other",
  [("hpsv2", letterbox, preprocess), ("pickscore", preprocess, letterbox)],
)
def test_wide_frames_are_shown_as_each_network_was_taught(
  saved, monkeypatch, name, prepare, other
):
  model, folder, _, texts = saved
  rng = np.random.default_rng(1)
  frames = rng.integers(0, 256, (5, 1, 48, 80, 3), dtype=np.uint8)

  def score(prepare):
    pixels = np.moveaxis(np.asarray(prepare(frames[:, 0], SIZE)), -1, 1)
    with torch.no_grad():
      seen = model.vision_model(torch.from_numpy(pixels.copy())).pooler_output
      images = torch.nn.functional.normalize(model.visual_projection(seen))
      scale = model.logit_scale.exp() if name == "pickscore" else 1.0
      return (scale * (images * texts).sum(1)).numpy()

  monkeypatch.setenv(f"DOLLAR_{name.upper()}", str(folder))
  values = base.get_reward(name)(frames, PROMPTS)
  np.testing.assert_allclose(values, score(prepare), rtol=0, atol=2e-5)
  assert np.abs(values - score(other)).max() > 1e-2


@pytest.mark.torch
@pytest.mark.parametrize("name", ["hpsv2", "pickscore"])
def test_the_form_with_a_gradient_gives_the_same(saved, monkeypatch, name):
  monkeypatch.setenv(f"DOLLAR_{name.upper()}", str(saved[1]))
  reward = base.get_reward(name)
  form = reward.differentiable("float32", False)
  conditions = form.condition(PROMPTS)
  assert conditions.shape == (5, form.width)

  def total(pixels):
    return form.fn(form.params, pixels, conditions).sum()

  pixels = jnp.asarray(reward.drawn(FRAMES), jnp.float32)
  found = form.fn(form.params, pixels, conditions)
  # this form does not round what it has resized
  wanted = reward(FRAMES, PROMPTS)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.std(wanted))
  way = np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
  slope = (total(pixels + way) - total(pixels - way)) / 2
  np.testing.assert_allclose(
    jnp.vdot(jax.grad(total)(pixels), way), slope, rtol=0.05
  )


@pytest.mark.parametrize("name", ["hpsv2", "pickscore"])
def test_a_plan_of_a_gradient_needs_no_weights(name):
  form = base.get_reward(name).differentiable("bfloat16", True)
  sizes = [leaf.size for leaf in jax.tree.leaves(form.params["vision"])]
  assert sum(sizes) == 632_076_800  # OpenCLIP's count for ViT-H/14
  assert form.width == 1024


@pytest.mark.torch
def test_hpsv2_reads_a_file_with_open_clip_names(tmp_path, monkeypatch):
  model = make_model(tmp_path, hidden_act="gelu")  # as OpenCLIP's ViT-H/14
  images, texts = embed(model, tmp_path)
  config = config_from_json(json.loads(model.config.to_json_string()))
  params = clip_from_torch(state_of(model), config)
  (tmp_path / "model.safetensors").unlink()
  file = tmp_path / "hps.safetensors"
  tensors = clip_to_torch(params, config, open_clip=True)
  safetensors.numpy.save_file(tensors, file)
  monkeypatch.setenv("DOLLAR_HPSV2", str(file))
  wanted = torch.einsum("bfp,bp->bf", images, texts).mean(1).numpy()
  values = preference.hpsv2(FRAMES, PROMPTS)
  np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5)


@pytest.mark.torch
@pytest.mark.parametrize("place", ["beside the CLIP", "in the cache"])
def test_aesthetic_is_laions_head_on_features_of_length_one(
  saved, hub, tmp_path, monkeypatch, place
):
  _, folder, images, _ = saved
  head = make_head()
  with torch.no_grad():
    wanted = head(images)[..., 0].mean(1).numpy()
  if place == "beside the CLIP":
    file = shutil.copytree(folder, tmp_path / "both") / HEAD
    save_head(head, file)
    monkeypatch.setenv("DOLLAR_AESTHETIC", str(file))
  else:
    alone = tmp_path / "alone"
    alone.mkdir()
    save_head(head, alone / "model.safetensors")
    (alone / "config.json").write_text('{"model_type": "other"}')
    put(hub, preference.AESTHETIC.published, alone)
    put(hub, preference.VISION, folder)
  reward = base.get_reward("aesthetic")
  values = reward(FRAMES, [""] * 5)
  assert (values.shape, values.dtype) == ((5,), np.float32)
  assert np.std(wanted) > 0.05
  np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5)
  assert (reward.kind, reward.uses_text) == ("image", False)


@pytest.mark.torch
def test_a_value_is_the_mean_of_those_of_its_frames(saved, monkeypatch):
  for name in ("DOLLAR_PICKSCORE", "DOLLAR_HPSV2"):
    monkeypatch.setenv(name, str(saved[1]))
  for reward in (preference.pickscore, preference.hpsv2):
    single = [reward(FRAMES[:, i : i + 1], PROMPTS) for i in range(4)]
    assert np.std(single, axis=0).min() > 1e-3
    np.testing.assert_allclose(
      reward(FRAMES, PROMPTS), np.mean(single, 0), rtol=0, atol=1e-5
    )


@pytest.mark.torch
def test_a_network_is_loaded_and_compiled_once(saved, tmp_path, monkeypatch):
  folder = shutil.copytree(saved[1], tmp_path / "again")
  monkeypatch.setenv("DOLLAR_PICKSCORE", str(folder))
  loads, load = [], clip_features.load_clip
  monkeypatch.setattr(
    clip_features, "load_clip", lambda path: loads.append(path) or load(path)
  )
  values = [None] * 3

  def work(i):
    values[i] = preference.pickscore(FRAMES[: i + 1], PROMPTS[: i + 1])

  threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert loads == [folder]
  assert [len(v) for v in values] == [1, 2, 3]
  whole = preference.pickscore(FRAMES, PROMPTS)  # 20 images: two batches
  np.testing.assert_allclose(values[2], whole[:3], rtol=0, atol=1e-5)
  wide = np.zeros((1, 2, 40, 90, 3), np.uint8)
  assert preference.pickscore(wide, ["a"]).shape == (1,)
  network = clip_features.clip_features(folder)
  assert network._see._cache_size() == network._read._cache_size() == 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.reward)
def test_absent_weights_are_one_sentence_with_its_remedy(source):
  with pytest.raises(ValueError) as error:
    base.get_reward(source.reward)(FRAMES, PROMPTS)
  assert str(error.value) == (
    f"reward {source.reward!r} has no weights: {source.variable} is not set "
    f"and the Hugging Face cache has no {source.published}; run `hf download "
    f"{source.published}`, or set {source.variable} to a folder or a "
    ".safetensors file"
  )


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.reward)
def test_a_path_that_leads_nowhere_is_named(source, tmp_path, monkeypatch):
  path = tmp_path / "nowhere"
  monkeypatch.setenv(source.variable, str(path))
  with pytest.raises(ValueError) as error:
    base.get_reward(source.reward)(FRAMES, PROMPTS)
  assert str(error.value) == (
    f"{source.variable} is {path}, which does not exist; set it to a folder or "
    "a .safetensors file"
  )


@pytest.mark.torch
def test_heads_that_do_not_fit_are_one_sentence(saved, tmp_path, monkeypatch):
  folder = shutil.copytree(saved[1], tmp_path / "both")
  file, head = folder / HEAD, make_head()

  def refusal(path):
    monkeypatch.setenv("DOLLAR_AESTHETIC", str(path))
    with pytest.raises(ValueError) as error:
      preference.aesthetic(FRAMES, PROMPTS)
    preference._head.cache_clear()
    return str(error.value)

  head[0] = torch.nn.Linear(768, 1024)
  save_head(head, file)
  assert refusal(file) == (
    f"layers.0 of {file} maps 768 numbers to 1024, expected {P} to 1024; use "
    "the head of the CLIP that it was trained on"
  )
  head[0], head[7] = torch.nn.Linear(P, 1024), torch.nn.Linear(16, 2)
  save_head(head, file)
  assert refusal(file) == (
    f"layers.7 of {file} maps 16 numbers to 2, expected 16 to 1; use the head "
    "of the CLIP that it was trained on"
  )
  assert refusal(folder) == (
    f"{folder} has no layers.0.weight, so it is not LAION's aesthetic head; "
    "give sac+logos+ava1-l14-linearMSE as safetensors"
  )
  alone = tmp_path / "alone.safetensors"
  shutil.copy(file, alone)
  name = preference.VISION
  assert refusal(alone) == (
    f"reward 'aesthetic' has a head, {alone}, and no CLIP: the Hugging Face "
    f"cache has no {name}; run `hf download {name}`, or lay its config.json "
    "and model.safetensors beside the head"
  )


def test_importing_the_rewards_imports_no_foreign_framework():
  code = (
    "import sys; from dollar_jax.rewards import base; "
    "assert 'hpsv2' in base.known_rewards(); "
    "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "set()\n"


def make_module(shape=(-1,)):
  """A network that weighs every axis, and notes how it was called."""

  class Module(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.scale = torch.nn.Parameter(torch.tensor(2.0))
      self.dropout = torch.nn.Dropout(0.9)
      self.calls = []

    def forward(self, clips):
      self.calls.append((tuple(clips.shape), clips.dtype, clips.min().item()))
      self.calls[-1] += (clips.max().item(), torch.is_grad_enabled())
      f, c, h, w = (torch.arange(1.0, n + 1) for n in clips.shape[1:])
      clips = self.dropout(clips) * self.scale
      out = torch.einsum("bfchw,f,c,h,w->b", clips, f, c**2, h**3, w**4)
      return out.reshape(shape) / 1e6

  return Module()


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_torch_module_becomes_a_reward(shape):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (5, 2, 4, 6, 3), dtype=np.uint8)
  frames[:, 0, 0, 0, :2] = 0, 255
  module = make_module(shape)
  reward = preference.torch_reward(module, batch_size=2)
  values = reward(frames, [""] * 5)
  f, h, w, c = (np.arange(1.0, n + 1) for n in frames.shape[1:])
  wanted = 2 / 255 * np.einsum("bfhwc,f,c,h,w->b", frames, f, c**2, h**3, w**4)
  assert (values.shape, values.dtype) == ((5,), np.float32)
  np.testing.assert_allclose(values, wanted / 1e6, rtol=1e-5)
  assert module.calls == [
    ((n, 2, 3, 4, 6), torch.float32, 0.0, 1.0, False) for n in (2, 2, 1)
  ]


@pytest.mark.torch
def test_a_torch_module_of_another_shape_is_refused():
  frames = np.zeros((2, 1, 4, 6, 3), np.uint8)
  with pytest.raises(ValueError) as error:
    preference.torch_reward(make_module((1, -1)))(frames, ["", ""])
  assert str(error.value) == (
    "Module gave scores of shape (1, 2) for 2 clips; make it return one "
    "number a clip"
  )
  with pytest.raises(ValueError) as error:
    preference.torch_reward(make_module(), batch_size=0)
  assert str(error.value) == "batch_size is 0; it must be at least 1"
