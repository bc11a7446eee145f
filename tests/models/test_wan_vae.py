"""`models.wan_vae` against diffusers' `AutoencoderKLWan`, random weights."""

import dataclasses

import jax
import numpy as np
import pytest

from dollar_jax.interop import autoencoder_keymaps, convert
from dollar_jax.models import wan_vae
from dollar_jax.models.wan_vae import WanVAEConfig

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch

OLD = WanVAEConfig(  # 2.1
  base_dim=6,
  z_dim=3,
  dim_mult=(1, 2, 4),
  num_res_blocks=1,
  temperal_downsample=(False, True),
  latents_mean=(-1.0, 0.0, 1.0),
  latents_std=(1.5, 1.5, 0.5),
)
OLD_DEEP = dataclasses.replace(  # the published shape, narrower
  OLD,
  base_dim=4,
  z_dim=2,
  latents_mean=(-1.0, 1.0),
  latents_std=(1.5, 0.5),
  dim_mult=(1, 2, 4, 4),
  num_res_blocks=2,
  temperal_downsample=(False, True, True),
)
NEW = dataclasses.replace(  # 2.2: shortcuts, patches, another decoder width
  OLD_DEEP,
  decoder_base_dim=6,
  is_residual=True,
  in_channels=12,
  out_channels=12,
  patch_size=2,
  num_res_blocks=1,
)
CASES = [
  pytest.param(OLD, (5, 16, 12), id="old-5x16x12"),
  pytest.param(OLD_DEEP, (9, 16, 24), id="deep-9x16x24"),
  pytest.param(OLD_DEEP, (1, 32, 40), id="deep-one-frame"),
  pytest.param(NEW, (9, 32, 16), id="new-9x32x16"),
]


def make_torch(config):
  """A diffusers twin in which no weight, bias or norm is trivial."""
  fields = dataclasses.asdict(config)
  fields = {k: list(v) if type(v) is tuple else v for k, v in fields.items()}
  torch.manual_seed(0)
  model = diffusers.AutoencoderKLWan(**fields)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape)
      if name.endswith("gamma"):
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
      keymap = autoencoder_keymaps.wan_vae_keymap(config)
      made[config] = (
        model,
        convert.torch_to_tree(state, keymap, wan_vae.shapes(config)),
      )
    return made[config]

  return get


def clip(shape, batch=2):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (batch, *shape, 3)).astype(np.float32)


@pytest.mark.parametrize("config, shape", CASES)
def test_encode_and_decode_equal_diffusers(twins, config, shape):
  model, params = twins(config)
  frames = clip(shape)
  with torch.no_grad():
    theirs = model.encode(torch.from_numpy(frames).movedim(-1, 1))
    wanted = theirs.latent_dist.mean
    decoded = model.decode(wanted).sample.movedim(1, -1).numpy()
  wanted = wanted.movedim(1, -1).numpy()
  encode = jax.jit(wan_vae.encode, static_argnums=0)
  latents = np.asarray(encode(config, params["encoder"], frames))
  assert np.std(wanted) > 0.05
  assert latents.shape == wanted.shape
  np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-4)
  decode = jax.jit(wan_vae.decode, static_argnums=0)
  ours = np.asarray(decode(config, params["decoder"], wanted))
  assert ours.shape == decoded.shape
  assert np.std(decoded) > 0.1
  np.testing.assert_allclose(ours, decoded, rtol=0, atol=1e-4)
