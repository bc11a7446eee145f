"""`models.wan` against diffusers' `WanTransformer3DModel`, random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.interop import convert, keymaps
from dollar_jax.models.blocks import REMAT_POLICIES
from dollar_jax.models.configs import REMATS
from dollar_jax.models.wan import WanConfig, WanTransformer

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch

ODD = WanConfig(  # odd head count, more channels out than in, normed text
  patch_size=(1, 2, 2),
  num_attention_heads=3,
  attention_head_dim=22,
  in_channels=4,
  out_channels=6,
  text_dim=10,
  freq_dim=32,
  ffn_dim=40,
  num_layers=3,
)
FLAT = WanConfig(  # one position a token, no norm before the text
  patch_size=(1, 1, 1),
  num_attention_heads=2,
  attention_head_dim=24,
  in_channels=5,
  out_channels=5,
  text_dim=8,
  freq_dim=16,
  ffn_dim=56,
  num_layers=2,
  cross_attn_norm=False,
  eps=1e-5,
)
IMAGE = dataclasses.replace(ODD, image_dim=14, added_kv_proj_dim=66)
FIRST_AND_LAST = dataclasses.replace(IMAGE, pos_embed_seq_len=6)
CASES = [
  pytest.param(ODD, (3, 4, 6), id="odd-3x4x6"),
  pytest.param(ODD, (5, 8, 2), id="odd-5x8x2"),
  pytest.param(FLAT, (3, 2, 5), id="flat-3x2x5"),
  pytest.param(FLAT, (1, 4, 3), id="flat-1x4x3"),
]
WORDS = 5


def make_torch(config):
  """A diffusers twin in which no weight, bias, norm or table is trivial."""
  fields = keymaps.TRANSFORMERS["WanTransformer3DModel"].to_json(config)
  torch.manual_seed(0)
  model = diffusers.WanTransformer3DModel(**fields)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape)
      if "norm" in name and name.endswith("weight"):
        p.copy_(1.0 + 0.3 * noise)
      elif name.endswith("scale_shift_table"):
        p.copy_(0.5 * noise)
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


def to_params(state, config, module):
  args = *inputs(config), None, image_embeddings(config)
  template = jax.eval_shape(module.init, jax.random.key(0), *args)
  keymap = keymaps.wan_keymap(config)
  return convert.torch_to_tree(state, keymap, template["params"])


def inputs(config, shape=(1, 2, 2), batch=2):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((batch, *shape, config.in_channels))
  text = rng.standard_normal((batch, WORDS, config.text_dim))
  clock = np.array([1000.0, 37.5, 0.0])[:batch]
  return tuple(a.astype(np.float32) for a in (x, clock, text))


def image_embeddings(config):
  if config.image_dim is None:
    return None
  rng = np.random.default_rng(3)
  return rng.standard_normal((2, 6, config.image_dim)).astype(np.float32)


def run_torch(model, x, clock, text, image=None):
  out = model(
    hidden_states=torch.from_numpy(x).movedim(-1, 1),
    timestep=torch.from_numpy(clock),
    encoder_hidden_states=torch.from_numpy(text),
    encoder_hidden_states_image=image,
    return_dict=False,
  )[0]
  return out.movedim(1, -1)


def run_ours(state, config, *args):
  module = WanTransformer(config)
  params = to_params(state, config, module)
  return np.asarray(jax.jit(module.apply)({"params": params}, *args))


@pytest.mark.parametrize("config, shape", CASES)
def test_output_equals_diffusers(twins, config, shape):
  model, state = twins(config)
  args = inputs(config, shape)
  with torch.no_grad():
    wanted = run_torch(model, *args).numpy()
  ours = run_ours(state, config, *args)
  assert ours.shape == (2, *shape, config.out_channels)
  assert np.std(wanted) > 0.1  # else an absolute bound means nothing
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", [IMAGE, FIRST_AND_LAST])
def test_image_to_video_equals_diffusers(twins, config):
  model, state = twins(config)
  x, clock, _ = inputs(config, (3, 4, 6))
  rng = np.random.default_rng(4)  # diffusers takes 512 words beside an image
  text = rng.standard_normal((2, 512, config.text_dim)).astype(np.float32)
  image = image_embeddings(config)
  theirs = torch.from_numpy(image)
  if config.pos_embed_seq_len:  # diffusers has two images in a batch's rows
    theirs = theirs.reshape(4, 3, config.image_dim)
  with torch.no_grad():
    wanted = run_torch(model, x, clock, text, theirs).numpy()
  ours = run_ours(state, config, x, clock, text, None, image)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)
  other = run_ours(state, config, x, clock, text, None, image[::-1])
  assert np.abs(other - ours).max() > 1e-2, "the image is not heard"


def test_each_token_may_have_a_time_of_its_own(twins):
  model, state = twins(ODD)
  x, _, text = inputs(ODD, (3, 4, 6))
  clock = np.linspace(0, 1000, 2 * 18, dtype=np.float32).reshape(2, 18)
  with torch.no_grad():
    wanted = run_torch(model, x, clock, text).numpy()
  ours = run_ours(state, ODD, x, clock, text)
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)
  same = np.repeat(clock[:, :1], 18, axis=1)
  np.testing.assert_allclose(
    run_ours(state, ODD, x, same, text),
    run_ours(state, ODD, x, clock[:, 0], text),
    rtol=0,
    atol=2e-6,
  )


@pytest.mark.parametrize("config, given", [(ODD, IMAGE), (IMAGE, ODD)])
def test_an_image_is_neither_dropped_nor_made_up(config, given):
  args = *inputs(config), None, image_embeddings(given)
  with pytest.raises(ValueError, match=r"image_dim=.* was given"):
    jax.eval_shape(WanTransformer(config).init, jax.random.key(0), *args)


def test_image_widths_must_agree():
  with pytest.raises(ValueError, match=r"added_kv_proj_dim is 60.*must be 66"):
    dataclasses.replace(IMAGE, added_kv_proj_dim=60)


def test_masked_words_are_zero_words(twins):
  model, state = twins(ODD)
  x, clock, text = inputs(ODD, (1, 4, 2))
  mask = np.arange(WORDS) < np.array([[2], [0]])  # second prompt is null
  with torch.no_grad():
    padded = np.where(mask[..., None], text, 0.0).astype(np.float32)
    wanted = run_torch(model, x, clock, padded).numpy()
  ours = run_ours(state, ODD, x, clock, text, mask)
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


def test_unscanned_blocks_compute_the_same(twins):
  _, state = twins(ODD)
  args = inputs(ODD, (1, 4, 2))
  loop = dataclasses.replace(ODD, scan=False)
  scanned, looped = (run_ours(state, c, *args) for c in (ODD, loop))
  np.testing.assert_allclose(looped, scanned, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def gradients(twins):
  """config → (gradients of a fixed linear loss by parameter, by input)."""
  args = inputs(ODD, (3, 4, 2))
  weight = np.random.default_rng(2).standard_normal((2, 3, 4, 2, 6))
  weight = weight.astype(np.float32)
  done = {}

  def get(config):
    if config not in done:
      module = WanTransformer(config)
      params = to_params(twins(ODD)[1], config, module)

      def loss(params, x, clock, text):
        out = module.apply({"params": params}, x, clock, text)
        return jnp.sum(out * weight)

      done[config] = jax.jit(jax.grad(loss, (0, 1, 3)))(params, *args)
    return done[config]

  return get, args, weight


def distance(ours, wanted):
  """Euclidean distance, relative to the wanted vector."""
  return np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)


def test_gradients_equal_torch_autograd(twins, gradients):
  model = twins(ODD)[0]
  get, args, weight = gradients
  x, text = (torch.from_numpy(a).requires_grad_() for a in (args[0], args[2]))
  out = model(
    x.movedim(-1, 1), torch.from_numpy(args[1]), text, return_dict=False
  )[0]
  model.zero_grad()
  (out.movedim(1, -1) * torch.from_numpy(weight)).sum().backward()

  grads, grad_x, grad_text = get(ODD)
  # the keymap only permutes, so it carries gradients as it does weights
  ours = convert.tree_to_torch(grads, keymaps.wan_keymap(ODD))
  wanted = {k: p.grad.numpy() for k, p in model.named_parameters()}
  assert ours.keys() == wanted.keys()
  far = {k: distance(ours[k], wanted[k]) for k in wanted}
  far |= {
    "x": distance(grad_x, x.grad.numpy()),
    "text": distance(grad_text, text.grad.numpy()),
  }
  assert max(far.values()) <= 1e-4, max(far, key=far.get)


@pytest.mark.parametrize("remat", sorted(REMAT_POLICIES))
def test_remat_changes_no_gradient(gradients, remat):
  get = gradients[0]
  plain = jax.tree.leaves(get(ODD))
  saved = jax.tree.leaves(get(dataclasses.replace(ODD, remat=remat)))
  for a, b in zip(plain, saved, strict=True):
    assert distance(b, a) <= 1e-5


def test_bfloat16_stays_within_torch_s_own_spread(twins):
  model, state = twins(ODD)
  args = inputs(ODD, (3, 4, 6))
  with torch.no_grad():
    exact = run_torch(model, *args).numpy()
    half = make_torch(ODD).to(torch.bfloat16)
    x, clock, text = (torch.from_numpy(a) for a in args)
    theirs = half(
      x.movedim(-1, 1).bfloat16(), clock, text.bfloat16(), return_dict=False
    )[0]
  theirs = theirs.movedim(1, -1).float().numpy()
  config = dataclasses.replace(ODD, dtype="bfloat16")
  ours = run_ours(state, config, *args)
  assert 0 < distance(ours, exact) <= distance(theirs, exact)


def test_every_remat_policy_has_a_name_in_the_configs():
  assert set(REMATS) == {"none", *REMAT_POLICIES}
