"""CLIP from files: transformers' names, OpenCLIP's, and what is refused."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from dollar_jax.interop import clip
from dollar_jax.interop.clip_keymaps import (
  clip_from_torch,
  clip_template,
  clip_to_torch,
)
from dollar_jax.models.clip import CLIP
from dollar_jax.models.clip_images import STD, preprocess
from tests.models.test_clip import BASE, HUGE, WORDS, change

try:
  import torch
  import transformers
except ImportError:
  torch = transformers = None

GOLDEN = pathlib.Path(__file__).with_name("golden_open_clip.safetensors")


@pytest.fixture(scope="module")
def golden():
  """What `golden_open_clip.py` wrote; "model" is the state dict."""
  arrays = safetensors.numpy.load_file(GOLDEN)
  state = {k: v for k, v in arrays.items() if k.startswith("model.")}
  rest = {k: v for k, v in arrays.items() if k not in state}
  state = {k.removeprefix("model."): v for k, v in state.items()}
  return rest | {"model": state}


def random_params(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: np.asarray(rng.standard_normal(s.shape)).astype(dtype),
    clip_template(config),
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    assert (x.shape, x.dtype) == (y.shape, y.dtype), path
    assert x.tobytes() == y.tobytes(), path


def save_folder(folder, raw, dtype=np.float32):
  """A folder as transformers writes it; returns its parameters."""
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(raw))
  config = clip.config_from_json(raw)
  params = random_params(config, dtype)
  tensors = clip_to_torch(params, config)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return params


def torch_model(raw):
  torch.manual_seed(0)
  return transformers.CLIPModel(transformers.CLIPConfig(**raw)).eval()


@pytest.mark.torch
@pytest.mark.parametrize("raw", [BASE, HUGE], ids=["B/32", "H/14"])
def test_transformers_names_go_round_bit_for_bit(raw):
  model, config = torch_model(raw), clip.config_from_json(raw)
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  params = clip_from_torch(state, config)
  assert_same_bits(clip_to_torch(params, config), state)
  ours = random_params(config)
  tensors = clip_to_torch(ours, config)
  assert tensors.keys() == state.keys()
  assert_same_bits(clip_from_torch(tensors, config), ours)


def test_open_clip_names_go_round_bit_for_bit(golden):
  state = golden["model"]
  config = clip.infer_config(state, vision_heads=2, text_heads=2)
  params = clip_from_torch(state, config, open_clip=True)
  assert_same_bits(clip_to_torch(params, config, open_clip=True), state)
  ours = random_params(config, jax.numpy.bfloat16)
  tensors = clip_to_torch(ours, config, open_clip=True)
  assert tensors.keys() == state.keys()
  assert_same_bits(clip_from_torch(tensors, config, open_clip=True), ours)


def test_a_scale_may_be_a_vector_of_one(golden):
  state = golden["model"]
  config = clip.infer_config(state, vision_heads=2, text_heads=2)
  odd = state | {"logit_scale": state["logit_scale"][None]}
  params = clip_from_torch(odd, config, open_clip=True)
  assert params["logit_scale"].shape == ()
  assert params["logit_scale"] == state["logit_scale"]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_equal_open_clip(golden, tmp_path, activation):
  file = tmp_path / "tiny.safetensors"
  safetensors.numpy.save_file(golden["model"], file)
  config, params = clip.load_clip(
    file, activation=activation, vision_heads=2, text_heads=2
  )
  run = jax.jit(CLIP(config).apply, static_argnames="method")
  pixels = np.moveaxis(golden["pixels"], 1, -1)
  ids, params = golden["ids"], {"params": params}
  ours = {
    "image": run(params, pixels, method="image_features"),
    "text": run(params, ids, method="text_features"),
    "logits": run(params, pixels, ids),
  }
  other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[activation]
  for name, value in ours.items():
    wanted = golden[f"{activation}.{name}"]
    assert np.std(wanted) > 0.1  # else an absolute bound means nothing
    np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-5)
    assert np.abs(wanted - golden[f"{other}.{name}"]).max() > 1e-3


def test_preprocessing_is_that_of_open_clip_but_for_a_rare_level(golden):
  """One of 255 levels in fewer than 1 of 100 values."""
  ours = np.asarray(preprocess(golden["frame"][None], 16))[0]
  shown = np.moveaxis(golden["shown"], 0, -1)
  levels = 255 * np.array(STD) * np.abs(ours - shown)
  assert levels.max() < 1.01
  assert (levels > 0.01).mean() < 1 / 100


@pytest.mark.parametrize(
  "name, vision, text, heads",
  [  # width, patch, positions, features; width; heads of both in OpenCLIP
    ("B-32", (768, 32, 50, 512), 512, (12, 8)),
    ("L-14", (1024, 14, 257, 768), 768, (16, 12)),
    ("L-14-336", (1024, 14, 577, 768), 768, (16, 12)),
    ("H-14", (1280, 14, 257, 1024), 1024, (16, 16)),
    ("g-14", (1408, 14, 257, 1024), 1024, (16, 16)),
    ("bigG-14", (1664, 14, 257, 1280), 1280, (16, 20)),
  ],
)
def test_sizes_are_inferred_from_shapes(name, vision, text, heads):
  width, patch, positions, features = vision
  shapes = {
    "visual.conv1.weight": (width, 3, patch, patch),
    "visual.positional_embedding": (positions, width),
    "visual.proj": (width, features),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
    "visual.transformer.resblocks.11.ln_1.bias": (width,),
    "token_embedding.weight": (49408, text),
    "positional_embedding": (77, text),
    "transformer.resblocks.0.mlp.c_fc.weight": (4 * text, text),
    "transformer.resblocks.9.ln_1.bias": (text,),
  }
  tensors = {k: types.SimpleNamespace(shape=s) for k, s in shapes.items()}
  config = clip.infer_config(tensors)
  size = 336 if name.endswith("336") else 224
  seen, read = config.vision_config, config.text_config
  assert (seen.image_size, seen.patch_size) == (size, patch)
  assert (seen.num_attention_heads, read.num_attention_heads) == heads
  assert (seen.num_hidden_layers, read.num_hidden_layers) == (12, 10)
  assert seen.intermediate_size == 4 * width
  assert (read.vocab_size, read.max_position_embeddings) == (49408, 77)
  assert read.eos_token_id == 2
  assert config.projection_dim == features
  assert seen.hidden_act == read.hidden_act == "gelu"
  config = clip.infer_config(tensors, activation="quick_gelu", vision_heads=4)
  assert config.vision_config.num_attention_heads == 4
  assert config.text_config.hidden_act == "quick_gelu"


@pytest.mark.torch
@pytest.mark.parametrize("shard_size", ["5GB", "300KB"])
def test_a_folder_of_transformers_is_read(tmp_path, shard_size):
  model = torch_model(BASE)
  model.save_pretrained(tmp_path, max_shard_size=shard_size)
  sharded = (tmp_path / "model.safetensors.index.json").is_file()
  assert sharded == (shard_size == "300KB")
  config, params = clip.load_clip(tmp_path, dtype="bfloat16")
  assert config == clip.config_from_json(BASE, dtype="bfloat16")
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  assert_same_bits(clip_to_torch(params, config), state)


def test_counters_of_older_files_are_passed_over(tmp_path):
  params = save_folder(tmp_path, BASE, np.float16)
  file = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["text_model.embeddings.position_ids"] = np.arange(10)[None]
  tensors["vision_model.embeddings.position_ids"] = np.arange(5)[None]
  safetensors.numpy.save_file(tensors, file)
  assert_same_bits(clip.load_clip(tmp_path)[1], params)


@pytest.mark.torch
def test_config_json_is_understood_as_by_transformers():
  """Defaults, fields that matter nothing, and the older way to say it all."""
  old = {
    "text_config": {"eos_token_id": 2, "num_beams": 1, "hidden_act": "gelu"},
    "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
    "vision_config": {"patch_size": 16, "dropout": 0.0},
    "vision_config_dict": None,
    "projection_dim": 768,
    "model_type": "clip",
  }
  for raw in (old, BASE, change(HUGE, hidden_act="gelu")):
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(raw)))
    ours = clip.config_from_json(raw)
    assert ours.projection_dim == theirs.projection_dim
    for name in ("vision_config", "text_config"):
      section = getattr(theirs, name).to_dict()
      for field, value in vars(getattr(ours, name)).items():
        assert value == section[field], (name, field)


def refusal(path, **options):
  with pytest.raises(ValueError) as error:
    clip.load_clip(path, **options)
  return str(error.value)


@pytest.mark.torch
def test_a_pickle_is_refused_with_the_command_that_converts_it(
  golden, tmp_path
):
  file = tmp_path / "a model.pt"
  state = {k: torch.from_numpy(v) for k, v in golden["model"].items()}
  torch.save({"epoch": 3, "state_dict": state}, file)
  message = refusal(file, vision_heads=2, text_heads=2)
  assert message.startswith(
    f"{file} is a pickle, which can run any code and is not read; where you "
    "trust it, convert it: python -c "
  )
  [command] = re.findall("convert it: python (.*)", message)
  subprocess.run([sys.executable, *shlex.split(command)], check=True)
  config, params = clip.load_clip(
    file.with_suffix(".safetensors"), vision_heads=2, text_heads=2
  )
  assert_same_bits(
    clip_to_torch(params, config, open_clip=True), golden["model"]
  )


def test_a_folder_of_pickles_is_refused(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(BASE))
  file = tmp_path / "pytorch_model.bin"
  file.write_bytes(b"")
  assert refusal(tmp_path) == (
    f"{file} is a pickle, which can run any code and is not read; where you "
    f'trust it, convert it: python -c "{clip.CONVERT}" {file} '
    f"{tmp_path / 'model.safetensors'}"
  )


def test_what_cannot_be_read_is_one_sentence(golden, tmp_path):
  absent = tmp_path / "absent"
  assert refusal(absent) == (
    f"{absent} does not exist; give a folder with config.json and "
    "model.safetensors, or a .safetensors file"
  )
  assert refusal(tmp_path) == (
    f"{tmp_path} has no model.safetensors; finish the download"
  )
  torn = tmp_path / "torn.safetensors"
  torn.write_bytes(GOLDEN.read_bytes()[:1000])
  assert re.fullmatch(
    re.escape(f"{torn} (1000 bytes) is not a whole safetensors file (")
    + r".*\); copy it again",
    refusal(torn),
  )
  whole = tmp_path / "whole.safetensors"
  safetensors.numpy.save_file({"a.weight": np.zeros(3)}, whole)
  assert refusal(whole) == (
    f"{whole} holds a.weight as F64; only float32, float16 and bfloat16 "
    "weights can be read: store the model as one of these"
  )
  safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, whole)
  assert refusal(whole) == (
    f"{whole}: the weights have no visual.conv1.weight, so they are not those "
    "of an OpenCLIP ViT; give transformers' CLIPModel as a folder with "
    "config.json"
  )
  safetensors.numpy.save_file(golden["model"], whole)
  assert refusal(whole) == (
    f"{whole}: a tower of width 32 has no whole number of heads of 64; say "
    "how many with vision_heads"
  )
  assert refusal(whole, vision_heads=2) == (
    f"{whole}: a tower of width 24 has no whole number of heads of 64; say "
    "how many with text_heads"
  )
  some = {k: v for k, v in golden["model"].items() if k != "ln_final.bias"}
  some["visual.transformer.resblocks.1.attn.in_proj_bias"] = np.zeros(
    95, np.float32
  )
  safetensors.numpy.save_file(some, whole)
  message = refusal(whole, vision_heads=2, text_heads=2)
  assert message.startswith(
    f"{whole}: the weights are not those of this OpenCLIP: 4 missing: "
    "ln_final.bias, visual.transformer.resblocks.1.attn.in_proj_bias[0], "
  )


def test_folders_of_other_models_are_refused(tmp_path):
  save_folder(tmp_path, BASE)
  (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
  assert refusal(tmp_path) == (
    f"{tmp_path}: config.json describes no CLIPModel, for it lacks "
    "vision_config; give the folder of a model with both towers"
  )
  raw = change(BASE, hidden_act="relu")
  (tmp_path / "config.json").write_text(json.dumps(raw))
  assert refusal(tmp_path) == (
    f"{tmp_path}: hidden_act of a CLIP tower is 'relu'; use one of "
    "['gelu', 'quick_gelu']"
  )
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map": {"a": "model-2.safetensors"}}')
  assert refusal(tmp_path) == (
    f"{tmp_path} has no model-2.safetensors; finish the download"
  )
  index.write_text("{}")
  assert refusal(tmp_path) == f"{index} is damaged; copy it again"


def save_tokenizer(folder):
  """CLIP's kind of tokeniser with a few words."""
  letters = "abcdefghijklmnop"
  tokens = [*letters, *(f"{c}</w>" for c in letters[:8]), "ca", "cab</w>"]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  vocab = {token: i for i, token in enumerate(tokens)}
  assert len(vocab) <= WORDS
  (folder / "vocab.json").write_text(json.dumps(vocab))
  (folder / "merges.txt").write_text("#version: 0.2\nc a\nca b</w>\n")
  return vocab


@pytest.mark.torch
@pytest.mark.parametrize("single", [False, True])
def test_texts_become_tokens(tmp_path, single):
  vocab = save_tokenizer(tmp_path)
  if single:  # all of it in tokenizer.json
    whole = transformers.CLIPTokenizerFast.from_pretrained(tmp_path)
    whole.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "merges.txt").unlink()
  tokenize = clip.load_tokenizer(tmp_path, 6)
  start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
  ids = tokenize(["Cab  a", "", "cab a b c d e f g"])
  assert ids.dtype == np.int32
  cab, a, b, c = (vocab[f"{word}</w>"] for word in ("cab", "a", "b", "c"))
  assert ids.tolist() == [
    [start, cab, a, end, end, end],
    [start, end, end, end, end, end],
    [start, cab, a, b, c, end],  # cut, and its end kept
  ]


def test_a_tokeniser_that_is_missing_is_one_sentence(tmp_path, monkeypatch):
  with pytest.raises(ValueError) as error:
    clip.load_tokenizer(tmp_path, 6)
  assert str(error.value) == (
    f"{tmp_path} has no tokenizer.json, nor vocab.json and merges.txt; copy "
    "them there from openai/clip-vit-large-patch14, all CLIPs share them"
  )
  save_tokenizer(tmp_path)
  monkeypatch.setitem(sys.modules, "transformers", None)
  with pytest.raises(ValueError) as error:
    clip.load_tokenizer(tmp_path, 6)
  assert str(error.value) == (
    f"prompts are cut into tokens by transformers ({tmp_path}), which is not "
    "installed; pip install 'dollar_jax[torch]'"
  )
