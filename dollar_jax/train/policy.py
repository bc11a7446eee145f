"""Policy gradient on the true reward alone: the baseline VSD + DDPO.

The few-step sampler's K - 1 noisy transitions are Gaussian, so that the
gradient of their log-density is known, and the expected reward can be climbed
without a model of it (DDPO's score-function estimator, arXiv 2305.13301,
Sec. 4.1). Every update decodes and scores fresh videos: nothing is replayed,
and each transition is used once, with the student that drew it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dollar_jax.losses.reward import policy_force, weighted_sum
from dollar_jax.parallel import rules
from dollar_jax.rewards.mixture import get_mixture
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.loop import Batches, Program, named_key
from dollar_jax.train.shared_labels import Decoder, SharedLabeller
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Array, Params, PyTree


class Policy:
  """Draws videos, scores them, and says where each transition should go.

  Attributes:
    decoder: makes frames of the videos.
    description: what must be equal for a checkpoint to fit.
  """

  def __init__(
    self, config: TrainConfig, student: Student, decoder: Decoder, mesh: Mesh
  ):
    """Finds the reward.

    Args:
      config: the run.
      student: whose transitions are judged.
      decoder: makes frames of its videos.
      mesh: where they are drawn.

    Raises:
      ValueError: if there is no such reward.
    """
    self._config, self.decoder = config, decoder
    self._rewards = get_mixture(config.reward.name)
    self._weights = np.array(self._rewards.weights, np.float32)
    self._stride = len(student.grid) - 1
    self._by_batch = rules.by_batch(mesh)
    self._everywhere = rules.replicated(mesh)
    self._draw = jax.jit(student.transitions)
    self._aim = jax.jit(_aim, static_argnums=2, out_shardings=self._by_batch)
    self._labeller = SharedLabeller(decoder, self._rewards, config.reward)
    self.description = {"name": config.reward.name}

  def rows(
    self, sampler: Params, batches: Batches, index: int
  ) -> tuple[PyTree, dict[str, Any]]:
    """Transitions [B, ...] and the force on the student's answer in each.

    Args:
      sampler: what the student samples with.
      batches: where prompts come from.
      index: the update.

    Returns:
      (x_t, t, force, text, text_mask) and metrics: `true_reward`, of one
      reward in its own unit (of a sum in deviations of this batch), and
      `label_failures`, `label_retries` so far.
    """
    batch, prompts = batches.next()
    key = named_key(self._config.seed, "policy", index)
    x0, path = self._draw(sampler, batch, key)
    prompts = batches.all_prompts(prompts)[:: self._stride]
    text, mask = (batch[k][:: self._stride] for k in ("text", "text_mask"))
    self._labeller.submit(index, x0, text, mask, prompts)
    (labelled,) = self._labeller.collect(np.inf, len(x0))
    values, valid = labelled.values, labelled.valid
    metrics: dict[str, Any] = dict(self._labeller.failures())
    advantage = np.zeros(len(values), np.float32)
    if valid.sum() > 1:
      good = values[valid]
      std = np.maximum(good.std(axis=0), 1e-5 * np.abs(good).max(axis=0))
      z = (good - good.mean(axis=0)) / np.maximum(std, 1e-12)
      total = np.asarray(weighted_sum(z, self._weights))
      advantage[valid] = total
      single = len(self._weights) == 1
      metrics["true_reward"] = float(good.mean() if single else total.mean())
    size = self._config.data.batch_size
    placed = rules.put(advantage, self._everywhere)
    return self._aim(path, placed, size), metrics

  def programs(
    self, sampler: Params, batch: PyTree, key: Any
  ) -> tuple[dict[str, Program], PyTree]:
    """What a run compiles, by name, and shapes of the rows that it gives.

    Args:
      sampler: shapes of what the student samples with.
      batch: shapes of a training batch, placed.
      key: of a random key.
    """
    args = sampler, batch, key
    x0, path = jax.eval_shape(self._draw, *args)
    advantage = jax.ShapeDtypeStruct(x0.shape[:1], np.float32)
    size = self._config.data.batch_size
    rows = jax.eval_shape(lambda *a: _aim(*a, size), path, advantage)
    found = {
      "policy": Program(self._draw, args),
      "decode": self.decoder.program(rules.placed(x0, self._by_batch)),
    }
    return found, rules.placed(rows, self._by_batch)

  def close(self) -> None:
    """Ends the labelling."""
    self._labeller.close()


def _aim(path: tuple, advantage: Array, size: int) -> tuple:
  """Rows of the batch's size, video after video."""
  x_t, t, score, *text = path
  rows = x_t, t, policy_force(score, advantage), *text
  return tuple(
    jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])[:size] for a in rows
  )
