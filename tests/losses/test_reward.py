"""Analytic truths of the reward losses, and statistics against NumPy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.losses import reward as losses
from dollar_jax.losses.reward import RewardStatistics

# Compiled as a whole: operation by operation takes several times as long.
policy_force = jax.jit(losses.policy_force)
preference_loss = jax.jit(losses.preference_loss)
reward_force = jax.jit(losses.reward_force, static_argnames="floor")
reward_loss = jax.jit(losses.reward_loss)
loss_gradient = jax.jit(jax.grad(losses.reward_loss))
reward_matching_loss = jax.jit(losses.reward_matching_loss)
matching_gradient = jax.jit(jax.value_and_grad(losses.reward_matching_loss))
update = jax.jit(RewardStatistics.update)
normalise = jax.jit(RewardStatistics.normalise)
weighted_sum = jax.jit(losses.weighted_sum)


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def _array(*values):
  return np.array(values, np.float32)


def _rms(x):
  return float(np.sqrt(np.mean(np.square(x))))


def test_matching_loss_is_the_mean_over_valid_samples():
  predicted = _array(1.0, 2.0, 3.0, 4.0)
  target = _array(0.0, np.nan, 5.0, 4.0)
  valid = np.array([True, False, True, False])
  loss, grad = matching_gradient(predicted, target, valid)
  assert float(loss) == pytest.approx((1 + 4) / 2)
  np.testing.assert_allclose(grad, [1.0, 0.0, -2.0, 0.0])
  assert float(reward_matching_loss(predicted, predicted + 2)) == 4.0


def test_matching_loss_without_any_label_is_zero():
  predicted, nothing = np.ones(4, np.float32), _array(*[np.nan] * 4)
  loss, grad = matching_gradient(predicted, nothing, np.zeros(4, bool))
  assert float(loss) == 0.0
  np.testing.assert_array_equal(grad, np.zeros(4))


def test_matching_loss_refuses_other_shapes():
  with pytest.raises(AssertionError):
    losses.reward_matching_loss(np.ones((3, 1)), np.ones((3, 1)))
  with pytest.raises(AssertionError):
    losses.reward_matching_loss(np.ones(3), np.ones(1))


def test_force_of_a_linear_reward_is_its_direction():
  w = _normal(0, 2, 3, 3, 4)
  x0 = _normal(1, 5, 2, 3, 3, 4)

  @jax.jit
  def gradient(x0):
    return jax.grad(lambda x: jnp.sum(jnp.einsum("bthwc,thwc->b", x, w)))(x0)

  force = reward_force(gradient(x0), floor=0.1)
  # far above the floor it is w itself, brought to a root mean square of 1
  np.testing.assert_allclose(
    force, np.broadcast_to(w / _rms(w), x0.shape), rtol=1e-4, atol=1e-6
  )
  assert 0.999 < _rms(force) < 1.0


def test_force_is_what_a_unit_move_gains_over_that_and_the_floor():
  """R = gain * mean over elements: a move of RMS 1 changes it by `gain`."""
  for gain in (0.01, 0.1, 1.0, 10.0):
    gradient = np.full((4, 2, 3, 3, 4), gain / 72, np.float32)
    expected = gain / np.hypot(gain, 1.0)
    np.testing.assert_allclose(reward_force(gradient), expected, rtol=1e-5)
    np.testing.assert_allclose(
      reward_force(gradient, floor=0.1), gain / np.hypot(gain, 0.1), rtol=1e-5
    )


def test_force_has_one_size_at_every_unit_and_latent_size():
  gradient = _normal(2, 3, 2, 4, 4, 8)
  size = _rms(reward_force(gradient))
  assert _rms(reward_force(100 * gradient)) == pytest.approx(size, rel=1e-4)
  # the same reward carried by twice as many elements: half the slope in each
  repeated = np.concatenate([gradient, gradient], axis=-1) / 2
  np.testing.assert_allclose(
    reward_force(repeated)[..., :8], reward_force(gradient), rtol=1e-5
  )
  # so with a floor that matters
  np.testing.assert_allclose(
    reward_force(repeated, floor=50.0)[..., :8],
    reward_force(gradient, floor=50.0),
    rtol=1e-5,
  )


def test_force_keeps_the_samples_ratios_over_the_batch():
  gradient = _normal(3, 2, 2, 2, 2, 4)
  gradient[1] = 0
  force = reward_force(gradient)
  np.testing.assert_array_equal(force[1], np.zeros_like(force[1]))
  assert _rms(force[0]) == pytest.approx(np.sqrt(2), rel=1e-3)


def test_no_slope_is_no_force():
  np.testing.assert_array_equal(
    reward_force(np.zeros((2, 1, 4, 4, 8), np.float32)),
    np.zeros((2, 1, 4, 4, 8)),
  )
  tiny = reward_force(_normal(4, 2, 1, 4, 4, 8) * np.float32(1e-6))
  assert _rms(tiny) < 0.01


def test_floor_of_nothing_is_refused():
  with pytest.raises(ValueError, match="floor of the reward force is 0"):
    losses.reward_force(np.ones((1, 2)), floor=0.0)


def test_surrogate_climbs_with_the_force_over_the_size():
  x0, force = _normal(5, 3, 1, 2, 2, 4), _normal(6, 3, 1, 2, 2, 4)
  np.testing.assert_allclose(
    loss_gradient(x0, force), -force / x0.size, rtol=1e-6
  )
  # no gradient to whatever made the force
  np.testing.assert_array_equal(
    jax.jit(jax.grad(losses.reward_loss, argnums=1))(x0, force),
    np.zeros_like(force),
  )


def test_descending_the_surrogate_raises_the_reward():
  centre = _normal(7, 3, 1, 2, 2, 4)

  def reward(x):
    return -np.sum((x - centre) ** 2, axis=(1, 2, 3, 4))

  x0 = np.zeros_like(centre)
  force = reward_force(2 * (centre - x0))  # the gradient
  moved = x0 - 0.1 * x0.size * np.asarray(loss_gradient(x0, force))
  assert (reward(moved) > reward(x0)).all()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  st.lists(
    st.lists(
      st.one_of(
        st.floats(-1e3, 1e3, width=32),
        st.sampled_from([float("nan"), float("inf")]),
      ),
      min_size=4,
      max_size=4,
    ),
    min_size=1,
    max_size=6,
  ),
  st.sampled_from([0.0, 1e5]),
  st.integers(0, 2**24 - 1),
)
def test_statistics_equal_numpys(batches, offset, mask):
  """Whatever comes in pieces, with gaps and on an offset."""
  values = np.array(batches, np.float32) + np.float32(offset)
  bits = (mask >> np.arange(values.size)) & 1
  valid = bits.reshape(values.shape).astype(bool)
  statistics = RewardStatistics.create()
  for batch, use in zip(values, valid, strict=True):
    statistics = update(statistics, batch, use)
  kept = values[valid & np.isfinite(values)].astype(np.float64)
  assert int(statistics.count) == len(kept)
  if not len(kept):
    assert float(statistics.mean) == 0.0
    return
  scale = 1e-5 * max(1.0, np.abs(kept).max())
  assert float(statistics.mean) == pytest.approx(kept.mean(), abs=scale)
  assert float(statistics.m2) / len(kept) == pytest.approx(
    kept.var(), rel=1e-3, abs=scale**2 + 1e-3
  )


def test_columns_have_statistics_of_their_own():
  values = np.stack([_normal(1, 9), 50 + 3 * _normal(2, 9)], axis=1)
  values[4, 1] = np.nan
  valid = np.arange(9) != 2
  together = update(RewardStatistics.create((2,)), values, valid)
  for i in range(2):
    alone = update(RewardStatistics.create(), values[:, i], valid)
    for name in ("count", "mean", "m2"):
      assert getattr(together, name)[i] == pytest.approx(
        getattr(alone, name), rel=1e-5
      )
  assert together.count.tolist() == [8, 7]


def test_a_sum_of_rewards_is_a_mean_by_weight():
  z = np.array([[1.0, 2.0], [np.nan, 0.0]], np.float32)
  found = weighted_sum(z, np.array([3.0, -1.0], np.float32))
  np.testing.assert_array_equal(found, [0.25, np.nan])
  single = weighted_sum(z[:, :1], np.array([0.3], np.float32))
  np.testing.assert_array_equal(single, z[:, 0])
  turned = weighted_sum(z[:, :1], np.array([-7.0], np.float32))
  np.testing.assert_array_equal(turned, -z[:, 0])


def test_normalised_values_are_z_scores():
  values = 5.0 + 0.25 * _normal(8, 400)
  statistics = update(RewardStatistics.create(), values)
  z = np.asarray(normalise(statistics, values))
  assert float(z.mean()) == pytest.approx(0.0, abs=1e-4)
  assert float(z.std()) == pytest.approx(1.0, abs=1e-3)
  assert np.isnan(normalise(statistics, _array(np.nan))).all()


@pytest.mark.parametrize("constant", [0.0, 1e-6, 0.1, -3.3, 1e6])
def test_a_constant_reward_does_not_explode(constant):
  statistics = RewardStatistics.create()
  for _ in range(5):
    statistics = update(statistics, _array(*[constant] * 7))
  z = normalise(statistics, _array(constant))
  assert float(np.abs(z).max()) < 0.1


def test_rounding_is_not_a_deviation():
  # neighbours of 3.3
  values = _array(3.3) * (1 + _array(1e-7) * _array(-1.0, 1.0, 1.0, -1.0, 2.0))
  assert values.dtype == np.float32
  assert len(set(values.tolist())) > 1
  statistics = update(RewardStatistics.create(), values)
  assert float(np.abs(normalise(statistics, values)).max()) < 0.1


def test_before_two_values_the_deviation_is_one():
  statistics = RewardStatistics.create()
  np.testing.assert_array_equal(
    normalise(statistics, _array(3.0)), np.array([3.0])
  )
  one = update(statistics, _array(7.0))
  np.testing.assert_array_equal(normalise(one, _array(8.0)), np.array([1.0]))


def test_statistics_are_arrays_that_a_checkpoint_can_hold():
  leaves = jax.tree.leaves(RewardStatistics.create())
  assert [leaf.dtype for leaf in leaves] == [jnp.float32] * 3
  assert len({id(leaf) for leaf in leaves}) == 3


def test_policy_force_is_advantage_by_score_at_unit_size():
  score = _normal(4, 3, 5, 2, 2)
  advantage = _normal(5, 5)
  force = policy_force(score, advantage)
  assert _rms(force) ** 2 == pytest.approx(1.0, rel=1e-5)
  ratio = np.asarray(force) / (score * advantage[:, None, None])
  np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-5)
  assert float(ratio.ravel()[0]) > 0
  nothing = np.zeros(5, np.float32)
  np.testing.assert_array_equal(policy_force(score, nothing), 0 * score)


def test_policy_force_climbs_an_expected_reward():
  """Of x ~ N(x0, 0.5²) and the reward -|x - 2|, on average."""
  eps = _normal(6, 1, 4000, 1)
  x0 = np.zeros(4000, np.float32)
  reward = -np.abs(x0 + np.float32(0.5) * eps[0, :, 0] - 2)
  advantage = (reward - reward.mean()) / reward.std()
  force = np.asarray(policy_force(2 * eps, advantage))[0, :, 0]
  error = float(force.std()) / 4000**0.5
  # d E[R] / d x0 = P(x < 2) - P(x > 2) > 0.99, all reward's variance is eps's
  assert float(force.mean()) > 20 * error


def test_equal_values_cost_a_coin():
  values = _array(0.3, -2.0)
  loss = preference_loss(values, values, np.array([False, True]))
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def test_a_vote_is_worth_its_surprise_and_a_tie_half_of_each():
  better, worse = _array(1.0), _array(-0.5)
  win, loss = (
    float(preference_loss(*pair, np.array([False])))
    for pair in ((better, worse), (worse, better))
  )
  chance = 1 / (1 + np.exp(-1.5))
  np.testing.assert_allclose([win, loss], -np.log([chance, 1 - chance]), 1e-6)
  tie = preference_loss(better, worse, np.array([True]))
  np.testing.assert_allclose(tie, (win + loss) / 2, rtol=1e-6)


def test_strengths_of_a_bradley_terry_model_are_found():
  true = np.array([-1.0, 0.0, 0.4, 1.5])
  i, j = (x.ravel() for x in np.meshgrid(range(4), range(4)))
  i, j = i[i != j], j[i != j]
  chance = 1 / (1 + np.exp(true[j] - true[i]))

  def expected(strength):  # as if every pair had very many votes
    pair = strength[i], strength[j]
    each = jax.vmap(
      lambda a, b: losses.preference_loss(a[None], b[None], np.zeros(1, bool))
    )(*pair)
    return jnp.sum(chance * each)

  slope, found = jax.jit(jax.grad(expected)), np.zeros(4, np.float32)
  for _ in range(300):
    found = found - 0.5 * np.asarray(slope(found))
  np.testing.assert_allclose(
    found - found.mean(), true - true.mean(), atol=1e-3
  )
