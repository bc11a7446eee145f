"""Losses of latent reward optimisation, and one scale for its weight.

Section 3 of the method (arXiv 2412.15689): L_φ fits the latent reward model
to true rewards, L_FT lets the student climb it. VSD and consistency losses
are means over latent elements whose gradient has order 1 / (B D) an element,
D being the number of elements of a sample, whatever D is; a bare −E R has a
gradient that depends on the reward's unit and on D, and β_FT would mean
something else at every latent size. Here the climb is a *force* of root mean
square at most 1 an element, like VSD's normalised gradient, and β_FT is the
ratio of the two.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp

from dollar_jax.typing import Array


def reward_matching_loss(
  predicted: Array, target: Array, valid: Array | None = None
) -> Array:
  """L_φ: mean squared error over the samples that have a label.

  Args:
    predicted: float32 [B], the latent reward model's values.
    target: float32 [B], true rewards in the same unit (normalised by
      `RewardStatistics`); what stands where `valid` is False does not matter.
    valid: bool [B]; None: all.

  Returns:
    Scalar; 0 with zero gradient if no sample is valid.
  """
  chex.assert_rank([predicted, target], 1)
  chex.assert_equal_shape([predicted, target])
  if valid is None:
    valid = jnp.ones(predicted.shape, bool)
  chex.assert_equal_shape([predicted, valid])
  # `where` before the square: 0 * NaN would be NaN, in the gradient too
  error = jnp.where(valid, predicted - target, 0.0).astype(jnp.float32)
  return jnp.sum(error**2) / jnp.maximum(jnp.sum(valid), 1)


def preference_loss(better: Array, worse: Array, tie: Array) -> Array:
  """Mean negative log-likelihood of votes, by the model of Bradley and Terry.

  The odds that a clip is preferred are exp(R) to exp(R'), R and R' being its
  value and the other's (Biometrika 39, 1952; for reward models arXiv
  2203.02155, Eq. 1). A tie is half a vote for each. R is in log-odds, up to a
  constant: one more is preferred in 73 of 100 votes.

  Args:
    better: float32 [B], values of the clips that were preferred.
    worse: float32 [B], values of the others.
    tie: bool [B], where neither was.

  Returns:
    Scalar; log 2 where all values are equal.
  """
  chex.assert_rank([better, worse, tie], 1)
  chex.assert_equal_shape([better, worse, tie])
  margin = (better - worse).astype(jnp.float32)
  loss = jax.nn.softplus(-margin)
  # softplus(x) = softplus(-x) + x
  return jnp.mean(loss + jnp.where(tie, margin / 2, 0.0))


def reward_force(reward_gradient: Array, floor: float = 1.0) -> Array:
  """The student's push towards reward, the same size at every latent size.

  With D elements a sample and R in standard deviations of the true reward,

      G     = D ∂R/∂x0
      force = G / sqrt(mean_{batch, elements} G² + floor²)

  A move of the latent by ε G / rms(G), whose root mean square is ε, changes
  R by ε rms(G): so rms(G) is the reward gained, in standard deviations, by
  a unit-RMS move along the gradient, and does not depend on how many elements
  carry it. The force has root mean square rms(G) / sqrt(rms(G)² + floor²) < 1
  and the gradient's direction; samples keep their ratios to each other. Where
  a unit-RMS move gains less than `floor`, there is nothing to climb and the
  force fades instead of blowing rounding up.

  For scale: a linear reward of a latent of unit variance has rms(G) >= 1,
  however its elements correlate (1 = wᵀΣw <= D |w|²). On 2x4x4x48 digits
  latents rms(G) was 26 for a model of JPEG size, 0.4 for one fitted to a
  constant and 1.3 for an untrained one.

  The mean is over the global batch: under jit with a sharded batch that needs
  nothing; under shard_map it would need a psum.

  Args:
    reward_gradient: [B, ...], each sample's own ∂R_i/∂x0_i (the gradient of
      the *sum* of R over the batch), R in standard deviations.
    floor: rms(G) at which the force has fallen to 0.71, above 0.

  Returns:
    float32 [B, ...], without gradient.

  Raises:
    ValueError: if floor is not above 0.
  """
  if not floor > 0:
    raise ValueError(
      f"floor of the reward force is {floor}; it must be above 0, or a "
      "constant reward divides by zero"
    )
  gradient = jax.lax.stop_gradient(reward_gradient).astype(jnp.float32)
  scaled = gradient * (gradient.size / gradient.shape[0])
  return scaled / jnp.sqrt(jnp.mean(scaled**2) + floor**2)


def policy_force(score: Array, advantage: Array) -> Array:
  """The push of a policy gradient, of root mean square 1.

  With the gradient of a transition's log-density with respect to the student's
  answer x0 and the advantage A of the video that it led to, A times that
  gradient is on average the gradient of the expected reward (DDPO, arXiv
  2305.13301, Eq. 3). Over the whole batch it is brought to a root mean square
  of 1, so that its weight is a ratio of forces, as that of `reward_force`.

  Args:
    score: [K - 1, R, ...], gradients of the log-densities.
    advantage: float32 [R]; 0 where a video has no reward.

  Returns:
    float32 [K - 1, R, ...]; 0 if every advantage is.
  """
  chex.assert_shape(advantage, score.shape[1:2])
  raw = score * advantage.reshape(-1, *[1] * (score.ndim - 2))
  return raw / jnp.sqrt(jnp.mean(raw**2) + 1e-12)


def reward_loss(x0: Array, force: Array) -> Array:
  """L_FT's surrogate: its gradient with respect to x0 is −force / size.

  Descending it climbs the reward, with a gradient an element of the same
  reduction as the VSD loss (a mean over batch and latent). Its value means
  nothing; log the predicted and the true reward.

  Args:
    x0: [B, ...], the student's prediction.
    force: float32 [B, ...] of `reward_force` at the same x0.

  Returns:
    Scalar.
  """
  chex.assert_equal_shape([x0, force])
  return -jnp.mean(jax.lax.stop_gradient(force) * x0.astype(jnp.float32))


@flax.struct.dataclass
class RewardStatistics:
  """Running mean and deviation of true rewards; a pytree of three arrays.

  Chan et al.'s parallel form of Welford's update: no sum of squares, so large
  offsets do not cancel. Rewards of several kinds, values [B, M], each have
  their own.

  Attributes:
    count: float32 [...], values seen.
    mean: float32 [...], their mean.
    m2: float32 [...], their summed squared distance from it.
  """

  count: Array
  mean: Array
  m2: Array

  @classmethod
  def create(cls, shape: tuple[int, ...] = ()) -> "RewardStatistics":
    """Statistics of nothing yet, for values [B, *shape]."""
    # three arrays, not one thrice: a donated buffer may appear only once
    return cls(*(jnp.zeros(shape, jnp.float32) for _ in range(3)))

  @property
  def std(self) -> Array:
    """Deviation, floored to what float32 can tell from rounding.

    1 while fewer than two values are known.
    """
    variance = self.m2 / jnp.maximum(self.count, 1.0)
    floor = jnp.maximum(1e-5 * jnp.abs(self.mean), 1e-12)
    std = jnp.maximum(jnp.sqrt(variance), floor)
    return jnp.where(self.count < 2, 1.0, std)

  def update(
    self, values: Array, valid: Array | None = None
  ) -> "RewardStatistics":
    """Adds values [B, ...]; skips what is not finite, or not `valid` [B]."""
    chex.assert_shape(values, (None, *self.mean.shape))
    values = jnp.asarray(values, jnp.float32)
    use = jnp.isfinite(values)
    if valid is not None:
      chex.assert_shape(valid, values.shape[:1])
      use = use & valid.reshape(-1, *[1] * self.mean.ndim)
    added = jnp.sum(use, axis=0, dtype=jnp.float32)
    some = jnp.maximum(added, 1.0)
    # distances from a value near the data keep the digits a plain sum loses
    first = jnp.argmax(use, axis=0, keepdims=True)
    origin = jnp.take_along_axis(values, first, axis=0)[0]
    origin = jnp.where(self.count > 0, self.mean, origin)
    origin = jnp.where(added > 0, origin, self.mean)
    distance = jnp.where(use, values - origin, 0.0)
    offset = jnp.sum(distance, axis=0) / some
    spread = jnp.sum(jnp.where(use, distance - offset, 0.0) ** 2, axis=0)
    delta = origin + offset - self.mean
    count = self.count + added
    share = added / jnp.maximum(count, 1.0)
    return RewardStatistics(
      count=count,
      mean=self.mean + delta * share,
      m2=self.m2 + spread + delta**2 * self.count * share,
    )

  def normalise(self, values: Array) -> Array:
    """Values [B, ...] in standard deviations from the mean; NaN stays NaN."""
    return (values - self.mean) / self.std


def weighted_sum(normalised: Array, weights: Array) -> Array:
  """One reward of several: their mean by weight, in standard deviations.

  A weight below 0 turns a reward round; a single reward stays as it is.

  Args:
    normalised: float32 [B, M], each in its own standard deviations.
    weights: float32 [M].

  Returns:
    float32 [B].
  """
  return normalised @ weights / jnp.sum(jnp.abs(weights))
