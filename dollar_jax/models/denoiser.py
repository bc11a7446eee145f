"""A network with its noise process: where raw output becomes `x0`."""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dollar_jax.diffusion import process as processes
from dollar_jax.diffusion.process import Process
from dollar_jax.models.configs import WanConfig
from dollar_jax.models.lora import COLLECTION, Adapted
from dollar_jax.models.wan import WanTransformer
from dollar_jax.parallel.rules import logical_axes
from dollar_jax.typing import Array, Params, PyTree

EXPERTS = ("transformer", "transformer_2")
"""The network for noisy times and that for the others, as diffusers has it."""


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """Linen module + noise process + prediction type + network clock.

  One `Denoiser` serves the teacher, student, EMA and fake-score trees: the
  parameters are an argument. It is hashable, so a jitted function may close
  over it.

  Attributes:
    module: takes `(x_t, clock, text, text_mask)`, returns its own output.
    process: the noise process it was trained on.
    prediction: what the output means, one of `process.PREDICTIONS`.
    shift: the time shift of its sampling and training grids; 1 is none.
    boundary: the time from which on, towards noise, the first of two experts
      answers, and below it the second (Wan 2.2 A14B). The parameters are then
      a dict of two trees, by the names in `EXPERTS`; None has one network.
  """

  module: nn.Module
  process: Process
  prediction: str
  shift: float = 1.0
  boundary: float | None = None

  @property
  def config(self) -> Any:
    """The module's own config dataclass."""
    return self.module.config

  def clock(self, t: Array) -> Array:
    """Maps `t` in [0, 1] to the network's units: 1000 t, or an index.

    vp networks count indices 0 … 999, so t = 1 is 999 (1000 t - 1).
    """
    ticks = 1000.0 * t.astype(jnp.float32)
    return ticks - 1.0 if self.process.name == "vp" else ticks

  def init(
    self,
    key: chex.PRNGKey,
    latent_shape: tuple[int, int, int, int],
    text_shape: tuple[int, int],
  ) -> Params:
    """Makes random parameters for latents [T, H, W, C] and text [S, D]."""
    x = jnp.zeros((1, *latent_shape))
    text = jnp.zeros((1, *text_shape))

    def init(key: chex.PRNGKey) -> Params:
      variables = self.module.init(key, x, jnp.zeros((1,)), text)
      return nn.meta.unbox(variables["params"])

    if self.boundary is None:
      return init(key)
    keys = jax.random.split(key, len(EXPERTS))
    return {n: init(k) for n, k in zip(EXPERTS, keys, strict=True)}

  @functools.cached_property
  def logical_axes(self) -> PyTree:
    """Names of the axes of every parameter, for sharding; computes nothing."""
    inputs = {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in self.config.smallest_inputs.items()
    }
    boxed = jax.eval_shape(self.module.init, jax.random.key(0), **inputs)
    axes = logical_axes(boxed["params"])
    return axes if self.boundary is None else dict.fromkeys(EXPERTS, axes)

  def raw(
    self,
    params: Params | Adapted,
    x_t: Array,
    t: Array,
    text: Array,
    text_mask: Array | None = None,
  ) -> Array:
    """The network's own output [B, T, H, W, C]; see `predict_x0`.

    Of two experts only one is computed where a batch is on one side of the
    boundary, as in sampling.
    """
    trees = {"params": params}
    if isinstance(params, Adapted):
      trees = {"params": params.base, COLLECTION: params.adapters}

    apply = self.module.apply
    if not getattr(getattr(self.module, "config", None), "scan", True):
      apply = functools.partial(_apply, self.module)  # long to trace

    def ask(trees: dict[str, Params]) -> Array:
      return apply(trees, x_t, self.clock(t), text, text_mask)

    if self.boundary is None:
      return ask(trees)
    first, second = (
      functools.partial(ask, {k: tree[name] for k, tree in trees.items()})
      for name in EXPERTS
    )
    noisy = t >= self.boundary

    def each() -> Array:
      return jnp.where(noisy.reshape(-1, 1, 1, 1, 1), first(), second())

    def not_first() -> Array:
      return jax.lax.cond(jnp.any(noisy), each, second)

    return jax.lax.cond(jnp.all(noisy), first, not_first)

  def predict_x0(
    self,
    params: Params | Adapted,
    x_t: Array,
    t: Array,
    text: Array,
    text_mask: Array | None = None,
  ) -> Array:
    """Predicts the clean latent.

    Args:
      params: the network's parameters, or another's with adapters.
      x_t: [B, T, H, W, C] noised latents.
      t: [B] times in [0, 1], 1 = noise.
      text: [B, S, D] text embeddings.
      text_mask: [B, S], True where there is a word; None is all True.

    Returns:
      `x0` [B, T, H, W, C] float32.
    """
    chex.assert_rank([x_t, t, text], [5, 1, 3])
    raw = self.raw(params, x_t, t, text, text_mask)
    return processes.to_x0(self.process, raw, x_t, t, self.prediction)

  def with_config(self, **changes: Any) -> "Denoiser":
    """A copy whose module config has other fields (dtype, remat, scan)."""
    config = dataclasses.replace(self.config, **changes)
    return dataclasses.replace(self, module=type(self.module)(config))


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, trees: PyTree, *inputs: Array | None) -> Array:
  """Applies a network; jitted, so that calls of equal shapes trace it once."""
  return module.apply(trees, *inputs)


def make_wan(config: WanConfig, shift: float = 1.0) -> Denoiser:
  """A Wan transformer on the flow process, predicting its velocity."""
  return Denoiser(
    WanTransformer(config), processes.FlowProcess(), "flow", shift
  )


def count_parameters(params: Params) -> int:
  """Number of scalars in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
