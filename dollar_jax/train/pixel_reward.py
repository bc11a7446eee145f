"""The reward's own gradient, back through the decoder: T2V-Turbo's way.

The baseline that the latent reward model is measured against (arXiv 2405.18750
with consistency distillation). It needs a reward that can be differentiated,
and the memory to decode whole videos and go back through the decoder in every
update of the student.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dollar_jax.losses.reward import reward_force
from dollar_jax.models.pixels import to_pixels
from dollar_jax.parallel import rules
from dollar_jax.rewards.base import Reward
from dollar_jax.rewards.mixture import get_mixture
from dollar_jax.train.config import TrainConfig
from dollar_jax.typing import Array, PyTree

_FLOOR = 1e-6
"""Of the force: the gradient is exact and in no unit that could tell when there
is nothing to climb, so that it is brought to size 1 whatever it was."""


class PixelReward:
  """A differentiable reward of decoded latents.

  Attributes:
    description: what must be equal for a checkpoint to fit.
    shapes: of what stays on the devices for it, placed.
  """

  def __init__(self, config: TrainConfig, codec: Any, mesh: Mesh):
    """Finds the reward and its form that has a gradient.

    Args:
      config: the run.
      codec: its `decode_signal` makes pixels of latents; a tree of arrays, or
        of shapes for a plan.
      mesh: where the student is trained.

    Raises:
      ValueError: if there is no such reward, or it has no gradient.
    """
    self._reward, self._sign = _single(config.reward.name)
    planned = any(
      isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(codec)
    )
    dtype = config.frozen_dtype
    self._form = self._reward.differentiable(dtype, planned)
    self._mesh = mesh
    self._given = {"codec": codec, "reward": self._form.params}
    everywhere = rules.replicated(mesh)
    self.shapes = {
      "codec": rules.placed(codec, everywhere),
      "reward": rules.placed(self._form.params, everywhere, dtype),
    }
    self.description = {"name": config.reward.name}

  def init(self) -> PyTree:
    """Puts codec and reward on the devices; returns them for `frozen`."""
    given = dict(self._given)
    given["reward"] = jax.tree.map(
      lambda leaf, shape: np.asarray(leaf).astype(shape.dtype),
      given["reward"],
      self.shapes["reward"],
    )
    return rules.put(given, rules.replicated(self._mesh))

  def conditions(self, prompts: list[str]) -> Array:
    """What the reward knows of a batch's prompts, [B, P].

    Args:
      prompts: those of this process' rows.
    """
    rows = np.asarray(self._form.condition(prompts), np.float32)
    return rules.shard_batch(rows, self._mesh)

  def conditions_shape(self, size: int) -> jax.ShapeDtypeStruct:
    """Shape of `conditions` for a batch of `size`, placed."""
    shape = size, self._form.width
    place = rules.by_batch(self._mesh)
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=place)

  def force(
    self, frozen: PyTree, x0: Array, conditions: Array
  ) -> tuple[Array, Array]:
    """Mean reward, and the force of its gradient at latents.

    Args:
      frozen: what `init` gave.
      x0: [B, T, H, W, C].
      conditions: [B, P].

    Returns:
      The mean of the reward in its own unit, and the gradient [B, ...], brought
      to a root mean square of 1.
    """

    def total(x0: Array) -> Array:
      x0 = rules.over_all_devices(x0, self._mesh)
      pixels = to_pixels(frozen["codec"].decode_signal(x0))
      drawn = self._reward.drawn(pixels)
      values = self._form.fn(frozen["reward"], drawn, conditions)
      return jnp.sum(values.astype(jnp.float32))

    value, gradient = jax.value_and_grad(total)(x0)
    force = reward_force(self._sign * gradient, _FLOOR)
    return value / x0.shape[0], force


def _single(name: str) -> tuple[Reward, float]:
  """A differentiable reward, and 1, or -1 where less is better.

  Raises:
    ValueError: if it is not one, or a sum.
  """
  mixture = get_mixture(name)
  reward = mixture.rewards[0]
  if len(mixture.rewards) > 1 or reward.differentiable is None:
    raise ValueError(
      f"config.reward.name is {name!r}, which has no gradient with respect to "
      "pixels; config.distill.pixel_weight takes one of sharpness, "
      "temporal_flickering, pickscore and hpsv2, and config.distill."
      "reward_weight takes any reward"
    )
  return reward, float(np.sign(mixture.weights[0]))
