"""Layers shared by the video transformers."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.models import lora
from dollar_jax.models.parameters import parameter
from dollar_jax.parallel.context import TOKEN_AXIS, platform, spread_axes
from dollar_jax.parallel.rules import whole
from dollar_jax.typing import Array


class Dense(nn.Module):
  """A linear layer over the last axis, in `dtype`, parameters in float32.

  Adds what its low-rank adapter says, where it is given one (`lora`).

  Attributes:
    features: output width.
    axes: logical names of the kernel's two axes, for sharding.
    dtype: compute type.
    use_bias: whether to add a bias.
  """

  features: int
  axes: tuple[str, str] = ("embed", "mlp")
  dtype: jnp.dtype = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., D] to [..., features]."""
    kernel = parameter(
      self,
      "kernel",
      nn.initializers.lecun_normal(),
      (x.shape[-1], self.features),
      self.axes,
    )
    rows = x.astype(self.dtype)
    # XLA's CPU backend is nearly twice as fast on the backward pass of a
    # matrix product as on that of a batched one; a merge of sharded batch and
    # token axes would cost a reshard.
    flat = (
      platform() == "cpu" and x.ndim > 2 and TOKEN_AXIS not in spread_axes()
    )
    if flat:
      rows = rows.reshape(-1, x.shape[-1])
    y = rows @ whole(kernel.astype(self.dtype), self.axes)
    if self.has_variable(lora.COLLECTION, "a"):
      a, b = (
        whole(self.get_variable(lora.COLLECTION, name).astype(self.dtype), axes)
        for name, axes in lora.factor_axes(self.axes).items()
      )
      y = y + (rows @ a) @ b
    if self.use_bias:
      bias = parameter(
        self,
        "bias",
        nn.initializers.zeros,
        (self.features,),
        _bias_axes(self.axes),
      )
      y = y + bias.astype(self.dtype)
    return y.reshape(*x.shape[:-1], self.features) if flat else y


def _bias_axes(kernel: tuple[str, str]) -> tuple[str]:
  """A bias is too little to be worth a gather of its own."""
  return ("norm",) if kernel[1] == "embed" else (kernel[1],)


class RMSNorm(nn.Module):
  """Root-mean-square norm with a weight, statistics in float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis; keeps shape and type."""
    shape = (x.shape[-1],)
    weight = parameter(self, "weight", nn.initializers.ones, shape, ("norm",))
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(x32**2, axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + self.eps) * weight).astype(x.dtype)


def layer_norm(x: Array, eps: float) -> Array:
  """LayerNorm without weights over the last axis; returns float32."""
  x = x.astype(jnp.float32)
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
  """LayerNorm with weight and bias, computed and returned in float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis of [..., D]."""
    shape = (x.shape[-1],)
    weight = parameter(self, "weight", nn.initializers.ones, shape, ("norm",))
    bias = parameter(self, "bias", nn.initializers.zeros, shape, ("norm",))
    return layer_norm(x, self.eps) * weight + bias


def sinusoidal_embedding(clock: Array, dim: int) -> Array:
  """Returns [..., dim] float32: cosines first, then sines, period to 10,000.

  diffusers' `Timesteps(flip_sin_to_cos=True, downscale_freq_shift=0)`.
  """
  half = dim // 2
  # on the host, rounded once: at clock 1000 XLA's exp is off by 1e-4 radians
  exponent = -math.log(10000.0) * np.arange(half, dtype=np.float32) / half
  angle = clock.astype(jnp.float32)[..., None] * np.exp(exponent)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": nn.gelu,
  "gelu_erf": functools.partial(nn.gelu, approximate=False),
}


class MLP(nn.Module):
  """Two linear layers with a non-linearity between.

  Attributes:
    hidden: width between.
    features: output width.
    activation: "silu", "gelu" (tanh form) or "gelu_erf" (exact).
    dtype: compute type.
  """

  hidden: int
  features: int
  activation: str = "gelu"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., D] to [..., features]."""
    act = ACTIVATIONS[self.activation]
    h = act(Dense(self.hidden, ("embed", "mlp"), self.dtype, name="up")(x))
    return Dense(self.features, ("mlp", "embed"), self.dtype, name="down")(h)
