"""A latent reward model with its optimiser, whatever it is fitted to."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from dollar_jax.losses.reward import RewardStatistics
from dollar_jax.models.latent_reward import LatentReward, normalised
from dollar_jax.parallel import rules
from dollar_jax.parallel.compilation import compiler_options
from dollar_jax.parallel.mesh import platform_of
from dollar_jax.train import state as states
from dollar_jax.train.config import TrainConfig, to_dict
from dollar_jax.train.loop import Program, named_key
from dollar_jax.train.optim import make_optimizer, make_schedule
from dollar_jax.train.state import NetworkState
from dollar_jax.typing import Array, Params, PyTree


@struct.dataclass
class RewardState:
  """What the latent reward model carries from step to step.

  Attributes:
    network: the model.
    statistics: mean and deviation [M] of the true rewards at the start of
      tuning; unless they are to run, they stay, so that "one deviation" keeps
      its meaning. Of nothing where people vote.
  """

  network: NetworkState
  statistics: RewardStatistics


class RewardNetwork:
  """Makes a latent reward model, fits it, and asks it.

  Attributes:
    model: the Linen module.
    description: what must be equal for a checkpoint to fit.
    shapes: of the model's state, placed.
  """

  def __init__(
    self,
    config: TrainConfig,
    kind: str,
    uses_text: bool,
    make_step: Callable[..., Any],
    updates: int,
    latent_shape: tuple[int, ...],
    text_shape: tuple[int, int],
    mesh: Mesh,
  ):
    """Prepares it; nothing is compiled yet.

    Args:
      config: the run.
      kind: of the model, see `LatentRewardConfig`.
      uses_text: whether it reads the prompts.
      make_step: makes its update of model, optimiser and settings.
      updates: in all, for the schedule.
      latent_shape: T, H, W, C.
      text_shape: S, D.
      mesh: where it is trained.
    """
    self._config = config
    self.model = LatentReward(
      dataclasses.replace(
        config.latent_reward, kind=kind, text_conditioned=uses_text
      )
    )
    self._shapes = tuple(latent_shape), tuple(text_shape)
    self._everywhere = rules.replicated(mesh)
    self._by_batch = rules.by_batch(mesh)
    settings = config.reward_optimizer
    self._optimizer = make_optimizer(settings, make_schedule(settings, updates))
    step = make_step(self.model, self._optimizer, settings)
    self._step = jax.jit(
      step,
      donate_argnums=0,
      compiler_options=compiler_options(platform_of(mesh)),
    )
    self._members = jax.jit(
      lambda params, *inputs: self.model.apply(
        {"params": params}, *inputs, method="members"
      )
    )
    self._normalised = jax.jit(normalised, out_shardings=self._everywhere)
    model = to_dict(self.model.config)
    self.description = {k: v for k, v in model.items() if k != "dtype"}
    state = jax.eval_shape(self._create, jax.random.key(0))
    self.shapes = rules.placed(state, self._everywhere)

  def init(self, columns: int) -> RewardState:
    """A fresh model, of `columns` true rewards."""
    key = named_key(self._config.seed, "latent_reward", 0)
    network = jax.jit(self._create)(key)
    statistics = RewardStatistics.create((columns,))
    return rules.put(RewardState(network, statistics), self._everywhere)

  def _create(self, key: Array) -> NetworkState:
    latent, text = self._shapes
    x0, tokens = jnp.zeros((1, *latent)), jnp.zeros((1, *text))
    mask = jnp.ones((1, text[0]), bool)
    params = self.model.init(key, x0, tokens, mask)["params"]
    ema = self._config.reward_optimizer.ema > 0
    return states.create(params, self._optimizer, ema)

  def update(
    self, network: NetworkState, batch: PyTree, index: int
  ) -> tuple[NetworkState, dict[str, Array]]:
    """Update number `index`, on a batch that the host holds."""
    key = named_key(self._config.seed, "reward", index)
    return self._step(network, {}, rules.put(batch, self._by_batch), key)

  def normalise(
    self, network: NetworkState, mean: np.ndarray, std: np.ndarray
  ) -> NetworkState:
    """The model with its members in a unit of their own, see `normalised`."""
    unit = rules.put((mean, std), self._everywhere)
    return network.replace(params=self._normalised(network.params, *unit))

  def program(self, key: Any, **rows: tuple[int, ...]) -> Program:
    """What a run compiles for the updates.

    Args:
      key: of a random key.
      **rows: shape of a row of each array of a batch; those of the text are
        added where it is read.
    """
    size = self._config.reward.batch_size
    if self.model.config.text_conditioned:
      text = self._shapes[1]
      rows |= {"text": text, "text_mask": text[:1]}
    batch = {
      name: jax.ShapeDtypeStruct(
        (size, *shape),
        bool if name == "text_mask" else np.float32,
        sharding=self._by_batch,
      )
      for name, shape in rows.items()
    }
    return Program(self._step, (self.shapes, {}, batch, key))

  def guesses(
    self, params: Params, batches: Iterable[tuple[Any, Any, Any]]
  ) -> np.ndarray:
    """What each member makes of (latents, text, text_mask), [members, N]."""
    return np.concatenate(
      [self._members(params, *batch) for batch in batches], axis=1
    )
