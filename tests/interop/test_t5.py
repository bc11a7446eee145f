"""T5 text encoders against the prompt embeddings of diffusers' pipelines."""

import json
import os
import shutil

import numpy as np
import pytest

from dollar_jax.interop import diffusers as ours
from dollar_jax.interop.t5 import T5Encoder
from dollar_jax.interop.text_encoders import TextEncoder

try:
  import diffusers
  import tokenizers
  import torch
  import transformers
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = tokenizers = torch = transformers = None

pytestmark = pytest.mark.torch

KINDS = {"wan": "UMT5EncoderModel", "cogvideox": "T5EncoderModel"}
PROMPTS = ["a 3 moving left", "", "  a&amp;amp;b \n 7  moving ", "right"]


def make_folder(folder, kind, seed=0):
  """A pipeline folder's text part: a tiny random encoder, a real tokenizer."""
  words = ["<pad>", "</s>", "<unk>", "▁a", "▁moving", "▁left", "▁right", "▁"]
  letters = [chr(c) for c in range(33, 127)]
  pieces = [(w, -float(i)) for i, w in enumerate(words + letters)]
  model = tokenizers.models.Unigram(pieces, unk_id=2)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="<pad>",
    eos_token="</s>",
    unk_token="<unk>",
  ).save_pretrained(folder / "tokenizer")
  config = getattr(transformers, kind).config_class(
    vocab_size=len(pieces),
    d_model=24,
    d_kv=8,
    d_ff=40,
    num_layers=2,
    num_heads=3,
  )
  torch.manual_seed(seed)
  encoder = getattr(transformers, kind)(config)
  with torch.no_grad():
    for p in encoder.parameters():
      p.add_(0.3 * torch.randn(p.shape))
  encoder.save_pretrained(folder / "text_encoder")
  return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
  path = tmp_path_factory.mktemp(request.param)
  return make_folder(path, KINDS[request.param])


def wanted(folder):
  """What the pipeline itself makes of the prompts, and how many words count."""
  kind = json.loads((folder / "text_encoder" / "config.json").read_text())
  kind = kind["architectures"][0]
  encoder = getattr(transformers, kind).from_pretrained(folder / "text_encoder")
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
  parts = {
    "tokenizer": tokenizer,
    "text_encoder": encoder.eval(),
    "transformer": None,
    "vae": None,
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
  }
  pipeline, length = diffusers.WanPipeline, 512
  if kind == "T5EncoderModel":
    pipeline, length = diffusers.CogVideoXPipeline, 226
    parts["scheduler"] = diffusers.CogVideoXDDIMScheduler()
  with torch.no_grad():
    text, _ = pipeline(**parts).encode_prompt(
      PROMPTS,
      do_classifier_free_guidance=False,
      max_sequence_length=length,
      device="cpu",
    )
  return text.numpy()


def test_embeddings_are_those_of_the_pipeline(folder, tmp_path):
  encoder = T5Encoder(folder, tmp_path)
  assert isinstance(encoder, TextEncoder)
  text, mask = encoder.encode(PROMPTS)
  theirs = wanted(folder)
  assert text.shape == theirs.shape == (4, encoder.max_length, encoder.dim)
  assert np.std(theirs[0, :3]) > 0.1
  np.testing.assert_allclose(text, theirs, rtol=0, atol=2e-5)
  assert not text[~mask].any()
  if encoder.kind == "UMT5EncoderModel":
    assert mask[0].sum() < mask.shape[1]
    assert mask[1].sum() == 1, "the null prompt is one end token"
  else:
    assert mask.all()


def test_a_prompt_is_embedded_once(folder, tmp_path, monkeypatch):
  first, _ = T5Encoder(folder, tmp_path, batch_size=3).encode(PROMPTS)
  again = T5Encoder(folder, tmp_path)
  monkeypatch.setattr(again, "_embed", None)  # cannot be called
  cached, _ = again.encode([*PROMPTS[::-1], PROMPTS[0]])
  np.testing.assert_array_equal(cached[:4], first[::-1])
  np.testing.assert_array_equal(cached[4], first[0])


def test_other_weights_have_another_cache(tmp_path):
  cache, kind = tmp_path / "cache", KINDS["cogvideox"]
  one = make_folder(tmp_path / "m", kind)
  before, _ = T5Encoder(one, cache).encode(["a"])
  shutil.rmtree(one)
  make_folder(one, kind, seed=1)
  after, _ = T5Encoder(one, cache).encode(["a"])
  assert np.abs(before - after).max() > 0.01


def test_a_long_prompt_is_cut_and_said_to_be(folder, tmp_path, caplog):
  encoder = T5Encoder(folder, tmp_path)
  with caplog.at_level("WARNING", logger="absl"):
    _, mask = encoder.encode(["a " * 599 + "a"])
  assert mask.all()
  assert f"has 601 tokens and is cut to {encoder.max_length}" in caplog.text


def test_the_copy_opens_as_the_original_does(folder, tmp_path):
  entries = T5Encoder(folder, tmp_path / "c").copy_to(tmp_path)
  assert entries["text_encoder"][1] in KINDS.values()
  assert hasattr(transformers, entries["tokenizer"][1])
  copied, _ = T5Encoder(tmp_path, tmp_path / "c").encode(["a 7"])
  text, _ = T5Encoder(folder, tmp_path / "c").encode(["a 7"])
  np.testing.assert_array_equal(copied, text)


def test_a_saved_model_takes_its_text_encoder_along(tiny, tmp_path):
  kind = KINDS["wan"]
  encoder = T5Encoder(make_folder(tmp_path / "from", kind), tmp_path / "c")
  ours.save(tmp_path / "m", tiny.denoiser, tiny.params, text_encoder=encoder)
  pipeline = diffusers.DiffusionPipeline.from_pretrained(
    tmp_path / "m", vae=None
  )
  assert type(pipeline.text_encoder).__name__ == kind
  read = ours.load_text_encoder(tmp_path / "m")
  assert isinstance(read, T5Encoder)
  assert read.dim == 24


def _damage(folder, how):
  weights = folder / "text_encoder" / "model.safetensors"
  config = folder / "text_encoder" / "config.json"
  if how == "pickle":
    weights.rename(weights.with_name("pytorch_model.bin"))
  elif how == "cut":
    os.truncate(weights, 100)
  elif how == "class":
    config.write_text(json.dumps({"architectures": ["BertModel"]}))
  else:
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize(
  "how, sentence",
  [
    ("pickle", "pickled weights"),
    ("cut", "not a whole safetensors file"),
    ("class", "'BertModel'; known are"),
    ("tokenizer", "no tokenizer/; finish the download"),
  ],
)
def test_a_bad_folder_is_refused(folder, tmp_path, how, sentence):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  _damage(tmp_path, how)
  with pytest.raises(ValueError, match=sentence):
    T5Encoder(tmp_path)
