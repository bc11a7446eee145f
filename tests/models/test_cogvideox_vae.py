"""`models.cogvideox_vae` against diffusers' `AutoencoderKLCogVideoX`."""

import dataclasses

import jax
import numpy as np
import pytest

from dollar_jax.interop import autoencoder_keymaps, convert
from dollar_jax.models import cogvideox_vae
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch

SMALL = CogVideoXVAEConfig(
  block_out_channels=(4, 8, 12),
  latent_channels=3,
  layers_per_block=1,
  norm_num_groups=2,
)
DEEP = dataclasses.replace(  # the published shape, narrower
  SMALL, block_out_channels=(6, 9, 9, 12), layers_per_block=2, norm_num_groups=3
)
HALF = dataclasses.replace(SMALL, temporal_compression_ratio=2)
CASES = [
  pytest.param(SMALL, (17, 8, 12), id="small-17x8x12"),
  pytest.param(SMALL, (8, 12, 8), id="small-even"),
  pytest.param(SMALL, (1, 16, 24), id="small-one-frame"),
  pytest.param(DEEP, (9, 16, 24), id="deep-9x16x24"),
  pytest.param(HALF, (9, 8, 8), id="half-9x8x8"),
]


def make_torch(config):
  """A diffusers twin in which no weight, bias or norm is trivial."""
  fields = dataclasses.asdict(config)
  levels = len(config.block_out_channels)
  fields |= {
    "down_block_types": ("CogVideoXDownBlock3D",) * levels,
    "up_block_types": ("CogVideoXUpBlock3D",) * levels,
  }
  torch.manual_seed(0)
  model = diffusers.AutoencoderKLCogVideoX(**fields)
  model.num_sample_frames_batch_size = 2 * config.temporal_compression_ratio
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape)
      if "norm" in name and p.ndim == 1 and name.endswith("weight"):
        p.copy_(1.0 + 0.3 * noise)
      elif name.endswith("bias"):
        p.copy_(0.2 * noise)
      else:
        p.copy_(noise / p[0].numel() ** 0.5)
  return model.eval()


@pytest.fixture(scope="module")
def twins():
  """config → (diffusers model, our parameters), made once each."""
  made = {}

  def get(config):
    if config not in made:
      model = make_torch(config)
      state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
      keymap = autoencoder_keymaps.cogvideox_vae_keymap(config)
      template = cogvideox_vae.shapes(config)
      made[config] = model, convert.torch_to_tree(state, keymap, template)
    return made[config]

  return get


@pytest.mark.parametrize("config, shape", CASES)
def test_encode_and_decode_equal_diffusers(twins, config, shape):
  model, params = twins(config)
  rng = np.random.default_rng(1)
  frames = rng.uniform(-1, 1, (2, *shape, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = model.encode(torch.from_numpy(frames).movedim(-1, 1))
    wanted = theirs.latent_dist.mean
    decoded = model.decode(wanted).sample.movedim(1, -1).numpy()
  wanted = wanted.movedim(1, -1).numpy()
  encode = jax.jit(cogvideox_vae.encode, static_argnums=0)
  latents = np.asarray(encode(config, params["encoder"], frames))
  assert np.std(wanted) > 0.05
  assert latents.shape == wanted.shape
  np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-4)
  decode = jax.jit(cogvideox_vae.decode, static_argnums=0)
  ours = np.asarray(decode(config, params["decoder"], wanted))
  assert ours.shape == decoded.shape
  assert np.std(decoded) > 0.1
  np.testing.assert_allclose(ours, decoded, rtol=0, atol=1e-4)
