"""The form that convolutions have on a CPU, against the plain one."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.models import (
  causal,
  cogvideox_vae,
  wan_vae,
)
from dollar_jax.models.causal import CausalConv, Conv, Stream
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.wan_vae import WanVAEConfig

WAN = WanVAEConfig(
  base_dim=4,
  z_dim=2,
  num_res_blocks=1,
  latents_mean=(0.0,) * 2,
  latents_std=(1.0,) * 2,
)
COGVIDEOX = CogVideoXVAEConfig(
  block_out_channels=(4, 8, 12),
  latent_channels=3,
  layers_per_block=1,
  norm_num_groups=2,
)
NETWORKS = [
  pytest.param(wan_vae, WAN, (9, 16, 24), id="wan"),
  pytest.param(cogvideox_vae, COGVIDEOX, (17, 8, 12), id="cogvideox"),
]
OPERANDS = re.compile(r":f32\[([\d,]+)\] = conv_general_dilated")


@pytest.fixture
def plain(monkeypatch):
  """Calls a function as if the devices were no CPU."""

  def call(fn, *args):
    with monkeypatch.context() as patch:
      for module in (causal, cogvideox_vae):
        patch.setattr(module, "platform", lambda: "tpu")
      return fn(*args)

  return call


def draw(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def draw_params(tree):
  """Weights that keep the size of what they weigh; no norm is trivial."""
  rng = np.random.default_rng(3)

  def leaf(path, x):
    scale = np.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.3
    mean = 1.0 if path[-1].key == "weight" else 0.0
    drawn = mean + scale * rng.standard_normal(x.shape)
    return drawn.astype(np.float32)

  return jax.tree.map_with_path(leaf, tree)


def assert_equal(ours, wanted):
  """To the rounding of float32 sums, as a share of the largest number."""
  wanted = np.asarray(wanted)
  assert ours.shape == wanted.shape
  scale = np.abs(wanted).max()
  assert scale > 0
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=3e-6 * scale)


class Chunks(nn.Module):
  """A causal convolution, chunk by chunk."""

  spatial: int
  repeat: bool
  lengths: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    conv, memory, out = CausalConv(5, self.spatial), None, []
    for chunk in jnp.split(x, np.cumsum(self.lengths)[:-1], axis=1):
      stream = Stream(memory, self.repeat)
      out.append(conv(chunk, stream))
      memory = stream.memory
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("spatial", [1, 3])
@pytest.mark.parametrize("lengths", [(7,), (1, 1, 1, 4), (3, 2, 2)])
def test_chunks_give_the_convolution_of_the_clip(lengths, spatial, repeat):
  """With what precedes the first frame written out."""
  x, network = draw((2, 7, 4, 6, 3)), Chunks(spatial, repeat, lengths)
  params = draw_params(jax.eval_shape(network.init, jax.random.key(0), x))

  def ours(params, x):
    return network.apply(params, x)

  def wanted(params, x):
    conv = params["params"]["CausalConv_0"]["conv"]
    past = jnp.concatenate([x[:, :1]] * 2, axis=1) * repeat
    around = (spatial // 2,) * 2
    y = jax.lax.conv_general_dilated(
      jnp.concatenate([past, x], axis=1),
      conv["kernel"],
      (1, 1, 1),
      ((0, 0), around, around),
      dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    return y + conv["bias"]

  y, back = jax.vjp(ours, params, x)
  y_wanted, back_wanted = jax.vjp(wanted, params, x)
  assert_equal(y, y_wanted)
  cotangent = draw(y.shape, 1)
  grads = back(cotangent), back_wanted(cotangent)
  jax.tree.map(assert_equal, *grads)


@pytest.mark.parametrize(
  "conv",
  [
    Conv(5, (1, 3, 3), (1, 2, 2), ((0, 1), (0, 1))),
    Conv(5, (3, 1, 1), (2, 1, 1)),
    Conv(5, (1, 3, 3), padding=((1, 1), (1, 1)), enlarge=True),
  ],
  ids=["halves", "halves-time", "doubles"],
)
def test_changes_of_size_are_those_of_the_plain_form(conv, plain):
  x = draw((2, 5, 4, 6, 3))
  params = draw_params(jax.eval_shape(conv.init, jax.random.key(0), x))
  y, back = jax.vjp(conv.apply, params, x)
  y_wanted, back_wanted = plain(jax.vjp, conv.apply, params, x)
  assert_equal(y, y_wanted)
  cotangent = draw(y.shape, 1)
  grads = back(cotangent), back_wanted(cotangent)
  jax.tree.map(assert_equal, *grads)


@pytest.mark.parametrize("network, config, clip", NETWORKS)
def test_autoencoders_are_those_of_the_plain_form(network, config, clip, plain):
  params = draw_params(network.shapes(config))
  frames = np.tanh(draw((2, *clip, 3)))

  def run(params, frames):
    def decode(latents):
      return network.decode(config, params["decoder"], latents)

    latents = network.encode(config, params["encoder"], frames)
    decoded, back = jax.vjp(decode, latents)
    return latents, decoded, back(frames)[0]

  ours = jax.jit(run)(params, frames)
  # another function, lest jit take the program it has
  wanted = plain(jax.jit(lambda *args: run(*args)), params, frames)
  for got, true in zip(ours, wanted, strict=True):
    scale = float(np.abs(true).max())
    np.testing.assert_allclose(got, true, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("network, config, clip", NETWORKS)
def test_only_a_cpu_has_it(network, config, clip, plain):
  params = network.shapes(config)
  frames = jax.ShapeDtypeStruct((1, *clip, 3), np.float32)

  def code(params, frames):
    latents = network.encode(config, params["encoder"], frames)
    return network.decode(config, params["decoder"], latents)

  def ranks():
    jaxpr = str(jax.make_jaxpr(lambda *args: code(*args))(params, frames))
    return {len(shape.split(",")) for shape in OPERANDS.findall(jaxpr)}

  assert ranks() == {4}
  assert plain(ranks) == {5}
