"""`models.cogvideox` against diffusers' `CogVideoXTransformer3DModel`."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.interop import convert, keymaps
from dollar_jax.models.cogvideox import CogVideoXConfig, CogVideoXTransformer

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch

SINE = CogVideoXConfig(  # 2B: sine positions, more channels out than in
  num_attention_heads=3,
  attention_head_dim=16,
  in_channels=4,
  out_channels=6,
  time_embed_dim=20,
  text_embed_dim=10,
  num_layers=3,
  sample_width=12,
  sample_height=8,
  sample_frames=9,
  max_text_seq_length=5,
)
ROTARY = dataclasses.replace(  # 5B: rotary positions
  SINE,
  num_attention_heads=2,
  attention_head_dim=16,
  attention_bias=False,
  use_rotary_positional_embeddings=True,
)
NEWER = dataclasses.replace(  # 1.5: patches in time, too
  SINE,
  num_attention_heads=3,
  attention_head_dim=32,
  patch_size_t=2,
  patch_bias=False,
  use_rotary_positional_embeddings=True,
  num_layers=2,
)
CASES = [
  pytest.param(SINE, (3, 8, 12), id="sine-trained-size"),
  pytest.param(SINE, (5, 4, 10), id="sine-5x4x10"),
  pytest.param(ROTARY, (3, 8, 12), id="rotary-trained-size"),
  pytest.param(ROTARY, (5, 4, 10), id="rotary-wide"),
  pytest.param(ROTARY, (1, 10, 4), id="rotary-tall"),
  pytest.param(NEWER, (4, 8, 6), id="newer-4x8x6"),
  pytest.param(NEWER, (2, 4, 12), id="newer-2x4x12"),
]


def make_torch(config):
  """A diffusers twin in which no weight, bias or norm is trivial."""
  fields = keymaps.TRANSFORMERS["CogVideoXTransformer3DModel"].to_json(config)
  torch.manual_seed(0)
  model = diffusers.CogVideoXTransformer3DModel(**fields)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape)
      if p.ndim == 1 and name.endswith("weight"):
        p.copy_(1.0 + 0.3 * noise)
      elif name.endswith("bias"):
        p.copy_(0.2 * noise)
      else:
        p.copy_(noise / p[0].numel() ** 0.5)
  return model


@pytest.fixture(scope="module")
def twins():
  """config → (diffusers model, its state dict as numpy), made once each."""
  made = {}

  def get(config):
    if config not in made:
      model = make_torch(config)
      state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
      made[config] = (model, state)
    return made[config]

  return get


def inputs(config, shape, batch=2):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((batch, *shape, config.in_channels))
  words = config.max_text_seq_length
  text = rng.standard_normal((batch, words, config.text_embed_dim))
  clock = np.array([999.0, 37.0])[:batch]
  return tuple(a.astype(np.float32) for a in (x, clock, text))


def run_torch(model, x, clock, text):
  """The twin, with the rotary positions of diffusers' own pipeline."""
  config, rotary = model.config, None
  if config.use_rotary_positional_embeddings:
    pipeline = types.SimpleNamespace(
      transformer=model, vae_scale_factor_spatial=8
    )
    frames, height, width = x.shape[1:4]
    rotary = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(
      pipeline, 8 * height, 8 * width, frames, "cpu"
    )
  out = model(
    hidden_states=x.movedim(-1, 2),
    encoder_hidden_states=text,
    timestep=clock,
    image_rotary_emb=rotary,
    return_dict=False,
  )[0]
  return out.movedim(2, -1)


def to_params(state, config, module, args):
  template = jax.eval_shape(module.init, jax.random.key(0), *args)
  keymap = keymaps.cogvideox_keymap(config)
  return convert.torch_to_tree(state, keymap, template["params"])


def run_ours(state, config, *args):
  module = CogVideoXTransformer(config)
  params = to_params(state, config, module, args)
  return np.asarray(jax.jit(module.apply)({"params": params}, *args))


def distance(ours, wanted):
  """Euclidean distance, relative to the wanted vector."""
  return np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("config, shape", CASES)
def test_output_equals_diffusers(twins, config, shape):
  model, state = twins(config)
  args = inputs(config, shape)
  with torch.no_grad():
    wanted = run_torch(model, *map(torch.from_numpy, args)).numpy()
  ours = run_ours(state, config, *args)
  assert ours.shape == (2, *shape, config.out_channels)
  assert np.std(wanted) > 0.1  # else an absolute bound means nothing
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


def test_unscanned_blocks_compute_the_same(twins):
  _, state = twins(ROTARY)
  args = inputs(ROTARY, (3, 4, 6))
  loop = dataclasses.replace(ROTARY, scan=False)
  scanned, looped = (run_ours(state, c, *args) for c in (ROTARY, loop))
  np.testing.assert_allclose(looped, scanned, rtol=0, atol=2e-6)


def test_gradients_equal_torch_autograd(twins):
  model, state = twins(ROTARY)
  args = inputs(ROTARY, (3, 4, 6))
  weight = np.random.default_rng(2).standard_normal((2, 3, 4, 6, 6))
  weight = weight.astype(np.float32)
  x, text = (torch.from_numpy(a).requires_grad_() for a in (args[0], args[2]))
  out = run_torch(model, x, torch.from_numpy(args[1]), text)
  model.zero_grad()
  (out * torch.from_numpy(weight)).sum().backward()

  module = CogVideoXTransformer(ROTARY)
  params = to_params(state, ROTARY, module, args)

  def loss(params, x, clock, text):
    out = module.apply({"params": params}, x, clock, text)
    return jnp.sum(out * weight)

  grads, grad_x, grad_text = jax.jit(jax.grad(loss, (0, 1, 3)))(params, *args)
  # the keymap only permutes, so it carries gradients as it does weights
  ours = convert.tree_to_torch(grads, keymaps.cogvideox_keymap(ROTARY))
  wanted = {k: p.grad.numpy() for k, p in model.named_parameters()}
  assert ours.keys() == wanted.keys()
  far = {k: distance(ours[k], wanted[k]) for k in wanted}
  far |= {
    "x": distance(grad_x, x.grad.numpy()),
    "text": distance(grad_text, text.grad.numpy()),
  }
  assert max(far.values()) <= 1e-4, max(far, key=far.get)


def test_bfloat16_stays_within_torch_s_own_spread(twins):
  model, state = twins(SINE)
  args = inputs(SINE, (3, 8, 12))
  tensors = [torch.from_numpy(a) for a in args]
  with torch.no_grad():
    exact = run_torch(model, *tensors).numpy()
    half = make_torch(SINE).to(torch.bfloat16)
    x, clock, text = tensors
    theirs = run_torch(half, x.bfloat16(), clock, text.bfloat16())
  theirs = theirs.float().numpy()
  config = dataclasses.replace(SINE, dtype="bfloat16")
  ours = run_ours(state, config, *args)
  assert 0 < distance(ours, exact) <= distance(theirs, exact)


def test_text_mask_is_not_looked_at(twins):
  _, state = twins(SINE)
  args = inputs(SINE, (1, 2, 4))
  masked = run_ours(state, SINE, *args, np.zeros(args[2].shape[:2], bool))
  np.testing.assert_array_equal(masked, run_ours(state, SINE, *args))
