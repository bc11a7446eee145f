"""Video autoencoders as codecs: read, run and written as diffusers does."""

import json

import jax
import numpy as np
import pytest

from dollar_jax.interop import diffusers as ours
from dollar_jax.models.video_vae import VideoVAE

try:
  import diffusers
  import torch
  from diffusers.video_processor import VideoProcessor
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = VideoProcessor = None

pytestmark = pytest.mark.torch

WAN = {
  "base_dim": 4,
  "z_dim": 2,
  "num_res_blocks": 1,
  "latents_mean": [-0.2, 0.3],
  "latents_std": [0.5, 2.0],
}
WAN_NEW = WAN | {
  "decoder_base_dim": 6,
  "is_residual": True,
  "in_channels": 12,
  "out_channels": 12,
  "patch_size": 2,
  "scale_factor_spatial": 16,
}
COGVIDEOX = {
  "block_out_channels": (6, 9, 9, 12),
  "layers_per_block": 1,
  "latent_channels": 3,
  "norm_num_groups": 3,
  "scaling_factor": 0.7,
}
KINDS = {
  "wan 2.1": ("AutoencoderKLWan", WAN, (5, 16, 24)),
  "wan 2.2": ("AutoencoderKLWan", WAN_NEW, (5, 32, 16)),
  "cogvideox": ("AutoencoderKLCogVideoX", COGVIDEOX, (9, 16, 24)),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
  """(folder, diffusers' autoencoder, size of a clip) of one kind."""
  kind, fields, size = KINDS[request.param]
  torch.manual_seed(0)
  model = getattr(diffusers, kind)(**fields).eval()
  folder = tmp_path_factory.mktemp("vae")
  model.save_pretrained(folder / "vae")
  (folder / "transformer").mkdir()
  return folder, model, size


def clips(size):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)


def statistics(model):
  c = model.config
  if "z_dim" not in c:
    return 0.0, 1.0 / c.scaling_factor
  shape = (1, c.z_dim, 1, 1, 1)
  return (torch.tensor(x).view(shape) for x in (c.latents_mean, c.latents_std))


def test_latents_and_frames_are_those_of_the_pipelines(case):
  folder, model, size = case
  codec = ours.load_codec(folder)
  frames = clips(size)
  mean, deviation = statistics(model)
  pixels = torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1.0
  with torch.no_grad():
    wanted = (model.encode(pixels).latent_dist.mean - mean) / deviation
    shown = model.decode(wanted * deviation + mean).sample
    shown = VideoProcessor().postprocess_video(shown, output_type="np")
  wanted = wanted.movedim(1, -1).numpy()
  latents = np.asarray(jax.jit(codec.encode)(frames))
  assert latents.shape == wanted.shape == (2, *codec.latent_shape(*size))
  assert np.std(wanted) > 0.01
  np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-4)
  back = np.asarray(jax.jit(codec.decode)(wanted))
  assert back.dtype == np.uint8
  assert back.shape[1] == shown.shape[1]
  assert np.std(shown) > 0.002
  # a value between two bytes may be rounded either way
  apart = np.abs(back / 255.0 - shown)
  assert apart.max() <= 1.0 / 255.0
  assert apart.mean() <= 0.3 / 255.0


def test_a_saved_autoencoder_is_bit_equal_and_opens_there(case, tiny, tmp_path):
  folder, model, _ = case
  codec = ours.load_codec(folder)
  ours.save(tmp_path / "m", tiny.denoiser, tiny.params, codec)
  again = ours.load_codec(tmp_path / "m")
  assert again.size == codec.size
  index = json.loads((tmp_path / "m" / "model_index.json").read_text())
  assert index["vae"] == ["diffusers", type(model).__name__]
  theirs = type(model).from_pretrained(tmp_path / "m" / "vae")
  before = type(model).from_pretrained(folder / "vae")
  stored = before.state_dict()
  for key, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, stored[key]), key
  for field, value in theirs.config.items():
    if not field.startswith("_"):
      assert value == before.config[field], field


@pytest.mark.parametrize(
  "size, sentence",
  [
    ((5, 20, 24), "multiples of"),
    ((6, 32, 32), "6 frames cannot be coded"),
    ((0, 32, 32), "0 frames cannot be coded"),
  ],
)
def test_clips_that_cannot_be_coded_are_refused(case, size, sentence):
  codec = ours.load_codec(case[0])
  with pytest.raises(ValueError, match=sentence):
    codec.encode(np.zeros((1, *size, 3), np.uint8))
  with pytest.raises(ValueError, match="give frames"):
    codec.encode(np.zeros((5, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"latents_mean": [0.0]}, "latents_mean has 1 and latents_std 2"),
    ({"dropout": 0.1}, "dropout=0.1 in config.json is not supported"),
    ({"base_dim": 8}, "mis-shaped"),
    ({"_class_name": "AutoencoderKL"}, "of class 'AutoencoderKL'; known are"),
  ],
)
def test_a_config_we_cannot_honour_is_named(tmp_path, change, sentence):
  diffusers.AutoencoderKLWan(**WAN).save_pretrained(tmp_path / "vae")
  (tmp_path / "transformer").mkdir()
  file = tmp_path / "vae" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=sentence):
    ours.load_codec(tmp_path)


def test_a_codec_is_an_argument_of_a_jitted_function(case):
  codec = ours.load_codec(case[0])
  assert isinstance(codec, VideoVAE)
  leaves, rest = jax.tree.flatten(codec)
  assert leaves
  assert all(leaf.dtype == np.float32 for leaf in leaves)
  assert jax.tree.unflatten(rest, leaves).size == codec.size
