"""Fréchet distance against Gaussians whose distance is known."""

import numpy as np
import pytest
from scipy import linalg

from dollar_jax.evaluation import frechet


def samples_with(mean, covariance, count, seed=0):
  """Samples whose own mean and covariance are exactly those given."""
  draws = np.random.default_rng(seed).normal(size=(count, len(mean)))
  draws -= draws.mean(0)
  white = draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T))).T
  return white @ linalg.sqrtm(covariance).real + mean


def covariance_of(width, seed):
  root = np.random.default_rng(seed).normal(size=(width, width))
  return root @ root.T / width


def test_diagonal_gaussians_have_the_closed_form():
  mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
  scale_a, scale_b = np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.5, 0.1])
  a = samples_with(mean_a, np.diag(scale_a**2), 50)
  b = samples_with(mean_b, np.diag(scale_b**2), 70, seed=1)
  expected = np.sum((mean_a - mean_b) ** 2) + np.sum((scale_a - scale_b) ** 2)
  assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_full_covariances_match_the_matrix_root():
  c_a, c_b = covariance_of(6, 1), covariance_of(6, 2)
  a, b = samples_with(np.zeros(6), c_a, 40), samples_with(np.ones(6), c_b, 30)
  expected = 6 + np.trace(c_a + c_b - 2 * linalg.sqrtm(c_a @ c_b).real)
  assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_zero_on_itself_symmetric_and_rotation_free():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(90, 8)), rng.gamma(2.0, size=(60, 8))
  turn = linalg.qr(rng.normal(size=(8, 8)))[0]
  distance = frechet.frechet_distance(a, b)
  assert distance > 1
  assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
  assert frechet.frechet_distance(b, a) == pytest.approx(distance)
  moved = frechet.frechet_distance(a @ turn + 5, b @ turn + 5)
  assert moved == pytest.approx(distance)


def test_fewer_samples_than_features():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(5, 32)), rng.normal(size=(9, 32)) + 1
  # Two Gaussians that lie within subspaces: lift them a little to full rank.
  lifted = [np.cov(x.T) + 1e-10 * np.eye(32) for x in (a, b)]
  expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
  expected += np.trace(sum(lifted))
  expected -= 2 * np.trace(linalg.sqrtm(lifted[0] @ lifted[1]).real)
  found = frechet.frechet_distance(a, b)
  assert found == pytest.approx(expected, rel=1e-4)
  assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_float32_features_are_summed_in_float64():
  a = (np.random.default_rng(0).normal(size=(200, 4)) + 1e4).astype(np.float32)
  shifted = frechet.frechet_distance(a.astype(np.float64) - 1e4, a - 1e4)
  assert frechet.frechet_distance(a, a) == pytest.approx(shifted, abs=1e-6)


def test_extrapolation_removes_the_bias_of_few_samples():
  rng = np.random.default_rng(0)
  plain, extrapolated = [], []
  for seed in range(8):
    a, b = rng.normal(size=(120, 24)), rng.normal(size=(400, 24))
    plain.append(frechet.frechet_distance(a, b))
    extrapolated.append(frechet.frechet_extrapolated(a, b, seed=seed))
  assert np.mean(plain) > 1.5
  assert abs(np.mean(extrapolated)) < 0.1 * np.mean(plain)


def test_extrapolation_keeps_captions_balanced():
  """Subsets of unequal captions would look worse than the whole does."""
  rng = np.random.default_rng(0)
  captions = np.repeat(np.arange(40), 5)
  centres = 5 * rng.normal(size=(40, 8))
  a, b = (centres[captions] + rng.normal(size=(200, 8)) for _ in range(2))
  balanced = frechet.frechet_extrapolated(a, b, captions, captions)
  assert abs(balanced) < 0.2
  assert frechet.frechet_extrapolated(a, b) < balanced - 0.5


def test_interval_of_the_extrapolation_is_as_wide_as_draws_say():
  rng = np.random.default_rng(0)
  reference = rng.normal(size=(600, 6))
  draws = [rng.normal(size=(150, 6)) * 1.5 for _ in range(40)]
  values = [frechet.frechet_extrapolated(x, reference) for x in draws]
  found = frechet.frechet_extrapolated_interval(draws[0], reference)
  assert found.value == values[0]
  assert 0.6 < (found.high - found.low) / 2 / 1.96 / np.std(values) < 1.7


def test_floor_falls_with_the_number_of_samples():
  features = np.random.default_rng(0).normal(size=(2000, 16))
  floors = [frechet.frechet_floor(features, n) for n in (50, 200, 800)]
  assert floors[0] > 2 * floors[1] > 4 * floors[2] > 0


def test_floor_sets_samples_against_others():
  """As far as two independent draws are from each other, and no less."""
  rng = np.random.default_rng(0)
  fresh = [
    frechet.frechet_distance(*rng.normal(size=(2, 100, 8))) for _ in range(20)
  ]
  floors = [
    frechet.frechet_floor(rng.normal(size=(200, 8)), 100) for _ in range(20)
  ]
  assert np.mean(floors) == pytest.approx(np.mean(fresh), rel=0.1)


def test_floor_of_balanced_captions_is_lower():
  rng = np.random.default_rng(0)
  captions = np.tile(np.arange(20), 50)
  features = 5 * rng.normal(size=(20, 8))[captions]
  features += rng.normal(size=features.shape)
  balanced = frechet.frechet_floor(features, 100, captions)
  assert balanced < 0.5 * frechet.frechet_floor(features, 100)


def test_interval_is_as_wide_as_repeated_draws_say():
  rng = np.random.default_rng(0)
  reference = rng.normal(size=(1000, 6))
  draws = [rng.normal(size=(150, 6)) * 1.5 for _ in range(40)]
  spread = np.std([frechet.frechet_distance(x, reference) for x in draws])
  found = frechet.frechet_interval(draws[0], reference)
  assert found.value == frechet.frechet_distance(draws[0], reference)
  assert 0.6 < (found.high - found.low) / 2 / 1.96 / spread < 1.7


def test_interval_does_not_leave_zero():
  a = np.random.default_rng(0).normal(size=(30, 2))
  assert frechet.frechet_interval(a, a).low == 0


@pytest.mark.parametrize(
  "a, b, message",
  [
    (np.ones((1, 3)), np.ones((4, 3)), r"\(1, 3\) have no covariance"),
    (np.ones((4, 3)), np.ones(4), r"\(4,\) have no covariance"),
    (np.ones((4, 3)), np.ones((4, 2)), "one feature extractor"),
    (np.array([[1.0], [np.nan]]), np.ones((4, 1)), "1 of 2 samples"),
  ],
)
def test_unusable_features_are_refused(a, b, message):
  with pytest.raises(ValueError, match=message):
    frechet.frechet_distance(a, b)


def test_too_few_samples_are_refused():
  a = np.random.default_rng(0).normal(size=(20, 16))
  with pytest.raises(ValueError, match="at least 32"):
    frechet.frechet_extrapolated(a, a)
  with pytest.raises(ValueError, match="take 2 to 10"):
    frechet.frechet_floor(a, 11)
