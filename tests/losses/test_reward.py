"""Analytic truths of the reward losses, and statistics against NumPy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.losses.reward import (
  RewardStatistics,
  policy_force,
  preference_loss,
  reward_force,
  reward_loss,
  reward_matching_loss,
  weighted_sum,
)


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _rms(x):
  return float(jnp.sqrt(jnp.mean(x**2)))


def test_matching_loss_is_the_mean_over_valid_samples():
  predicted = jnp.array([1.0, 2.0, 3.0, 4.0])
  target = jnp.array([0.0, jnp.nan, 5.0, 4.0])
  valid = jnp.array([True, False, True, False])
  loss, grad = jax.value_and_grad(reward_matching_loss)(
    predicted, target, valid
  )
  assert float(loss) == pytest.approx((1 + 4) / 2)
  np.testing.assert_allclose(grad, [1.0, 0.0, -2.0, 0.0])
  assert float(reward_matching_loss(predicted, predicted + 2)) == 4.0


def test_matching_loss_without_any_label_is_zero():
  predicted, nothing = jnp.ones(3), jnp.full(3, jnp.nan)
  loss, grad = jax.value_and_grad(reward_matching_loss)(
    predicted, nothing, jnp.zeros(3, bool)
  )
  assert float(loss) == 0.0
  np.testing.assert_array_equal(grad, np.zeros(3))


def test_matching_loss_refuses_other_shapes():
  with pytest.raises(AssertionError):
    reward_matching_loss(jnp.ones((3, 1)), jnp.ones((3, 1)))
  with pytest.raises(AssertionError):
    reward_matching_loss(jnp.ones(3), jnp.ones(1))


def test_force_of_a_linear_reward_is_its_direction():
  w = _normal(0, 2, 3, 3, 4)
  x0 = _normal(1, 5, 2, 3, 3, 4)
  gradient = jax.grad(lambda x: jnp.sum(jnp.einsum("bthwc,thwc->b", x, w)))(x0)
  force = reward_force(gradient, floor=0.1)
  # far above the floor it is w itself, brought to a root mean square of 1
  np.testing.assert_allclose(
    force, jnp.broadcast_to(w / _rms(w), x0.shape), rtol=1e-4, atol=1e-6
  )
  assert 0.999 < _rms(force) < 1.0


def test_force_is_what_a_unit_move_gains_over_that_and_the_floor():
  """R = gain * mean over elements: a move of RMS 1 changes it by `gain`."""
  for gain in (0.01, 0.1, 1.0, 10.0):
    gradient = jnp.full((4, 2, 3, 3, 4), gain / 72)
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
  repeated = jnp.concatenate([gradient, gradient], axis=-1) / 2
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
  gradient = gradient.at[1].multiply(0.0)
  force = reward_force(gradient)
  np.testing.assert_array_equal(force[1], np.zeros_like(force[1]))
  assert _rms(force[0]) == pytest.approx(np.sqrt(2), rel=1e-3)


def test_no_slope_is_no_force():
  np.testing.assert_array_equal(
    reward_force(jnp.zeros((2, 3, 4))), np.zeros((2, 3, 4))
  )
  tiny = reward_force(_normal(4, 2, 1, 4, 4, 8) * 1e-6)
  assert _rms(tiny) < 0.01


def test_floor_of_nothing_is_refused():
  with pytest.raises(ValueError, match="floor of the reward force is 0"):
    reward_force(jnp.ones((1, 2)), floor=0.0)


def test_surrogate_climbs_with_the_force_over_the_size():
  x0, force = _normal(5, 3, 1, 2, 2, 4), _normal(6, 3, 1, 2, 2, 4)
  np.testing.assert_allclose(
    jax.grad(reward_loss)(x0, force), -force / x0.size, rtol=1e-6
  )
  # no gradient to whatever made the force
  np.testing.assert_array_equal(
    jax.grad(reward_loss, argnums=1)(x0, force), np.zeros_like(force)
  )


def test_descending_the_surrogate_raises_the_reward():
  centre = _normal(7, 4, 1, 2, 2, 3)

  def reward(x):
    return -jnp.sum((x - centre) ** 2, axis=(1, 2, 3, 4))

  x0 = jnp.zeros_like(centre)
  force = reward_force(jax.grad(lambda x: reward(x).sum())(x0))
  moved = x0 - 0.1 * x0.size * jax.grad(reward_loss)(x0, force)
  assert (reward(moved) > reward(x0)).all()


update = jax.jit(RewardStatistics.update)


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
  assert float(statistics.m2 / len(kept)) == pytest.approx(
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
  z = statistics.normalise(values)
  assert float(z.mean()) == pytest.approx(0.0, abs=1e-4)
  assert float(z.std()) == pytest.approx(1.0, abs=1e-3)
  assert np.isnan(statistics.normalise(jnp.array([jnp.nan]))).all()


@pytest.mark.parametrize("constant", [0.0, 1e-6, 0.1, -3.3, 1e6])
def test_a_constant_reward_does_not_explode(constant):
  statistics = RewardStatistics.create()
  for _ in range(5):
    statistics = update(statistics, jnp.full(7, constant))
  z = statistics.normalise(jnp.full(3, constant))
  assert float(jnp.abs(z).max()) < 0.1


def test_rounding_is_not_a_deviation():
  values = 3.3 * (1 + 1e-7 * jnp.array([-1.0, 1.0, 1.0, -1.0, 2.0]))
  assert len(set(values.tolist())) > 1
  statistics = update(RewardStatistics.create(), values)
  assert float(jnp.abs(statistics.normalise(values)).max()) < 0.1


def test_before_two_values_the_deviation_is_one():
  statistics = RewardStatistics.create()
  np.testing.assert_array_equal(
    statistics.normalise(jnp.array([3.0])), np.array([3.0])
  )
  one = update(statistics, jnp.array([7.0]))
  np.testing.assert_array_equal(
    one.normalise(jnp.array([8.0])), np.array([1.0])
  )


def test_statistics_are_arrays_that_a_checkpoint_can_hold():
  leaves = jax.tree.leaves(RewardStatistics.create())
  assert [leaf.dtype for leaf in leaves] == [jnp.float32] * 3
  assert len({id(leaf) for leaf in leaves}) == 3


def test_policy_force_is_advantage_by_score_at_unit_size():
  score = _normal(4, 3, 5, 2, 2)
  advantage = _normal(5, 5)
  force = policy_force(score, advantage)
  assert float(jnp.mean(force**2)) == pytest.approx(1.0, rel=1e-5)
  ratio = force / (score * advantage[:, None, None])
  np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-5)
  assert float(ratio.ravel()[0]) > 0
  np.testing.assert_array_equal(policy_force(score, jnp.zeros(5)), 0 * score)


def test_policy_force_climbs_an_expected_reward():
  """Of x ~ N(x0, 0.5²) and the reward -|x - 2|, on average."""
  eps = _normal(6, 1, 4000, 1)
  x0 = jnp.zeros(4000)
  reward = -jnp.abs(x0 + 0.5 * eps[0, :, 0] - 2.0)
  advantage = (reward - reward.mean()) / reward.std()
  force = policy_force(eps / 0.5, advantage)[0, :, 0]
  error = float(force.std()) / 4000**0.5
  # d E[R] / d x0 = P(x < 2) - P(x > 2) > 0.99, all reward's variance is eps's
  assert float(force.mean()) > 20 * error


def test_equal_values_cost_a_coin():
  values = jnp.array([0.3, -2.0])
  loss = preference_loss(values, values, jnp.array([False, True]))
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def test_a_vote_is_worth_its_surprise_and_a_tie_half_of_each():
  better, worse = jnp.array([1.0]), jnp.array([-0.5])
  win, loss = (
    preference_loss(*pair, jnp.array([False]))
    for pair in ((better, worse), (worse, better))
  )
  chance = 1 / (1 + np.exp(-1.5))
  np.testing.assert_allclose([win, loss], -np.log([chance, 1 - chance]), 1e-6)
  tie = preference_loss(better, worse, jnp.array([True]))
  np.testing.assert_allclose(tie, (win + loss) / 2, rtol=1e-6)


def test_strengths_of_a_bradley_terry_model_are_found():
  true = np.array([-1.0, 0.0, 0.4, 1.5])
  i, j = (x.ravel() for x in np.meshgrid(range(4), range(4)))
  i, j = i[i != j], j[i != j]
  chance = 1 / (1 + np.exp(true[j] - true[i]))

  def expected(strength):  # as if every pair had very many votes
    pair = strength[i], strength[j]
    each = jax.vmap(
      lambda a, b: preference_loss(a[None], b[None], jnp.array([False]))
    )(*pair)
    return jnp.sum(chance * each)

  found = jnp.zeros(4)
  for _ in range(300):
    found -= 0.5 * jax.grad(expected)(found)
  np.testing.assert_allclose(
    found - found.mean(), true - true.mean(), atol=1e-3
  )
