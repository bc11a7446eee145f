"""Diversity, distinct shapes and digit consistency on sets made by hand."""

import numpy as np
import pytest

from dollar_jax.evaluation import diversity

PAIRS = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 2.0], [9.0, 9.0]])
CAPTIONS = ["a", "a", "b", "b", "alone"]


def test_diversity_is_the_mean_over_captions_of_pair_distances():
  assert diversity.diversity(PAIRS, CAPTIONS).value == 3.0  # of 5 and 1


def test_every_caption_counts_once_however_many_samples_it_has():
  features = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [2.0]])
  found = diversity.diversity(features, list("aaaabb"))
  assert found.value == 1.0
  assert found.low == 0  # and no distance is negative


def test_copies_are_one_shape_and_strangers_are_many():
  strangers = 10 * np.eye(10)
  copies = np.ones((10, 10)) + 0.001 * strangers
  captions = ["same"] * 10 + ["new"] * 10
  shapes = np.concatenate([copies, strangers])
  found = diversity.distinct_shapes(shapes, captions, threshold=1.0)
  assert found.value == pytest.approx((0.1 + 1.0) / 2)
  assert found.low == 0
  assert found.high == 1


def test_a_chain_of_near_shapes_is_one_shape():
  chain = np.arange(5.0)[:, None]
  assert diversity.distinct_shapes(chain, ["a"] * 5, 1.1).value == 0.2
  assert diversity.distinct_shapes(chain, ["a"] * 5, 0.9).value == 1.0


def test_samples_that_show_nothing_are_no_shape():
  shapes = np.array([[0.0], [5.0], [9.0], [20.0]])
  shown = np.array([True, True, False, False])
  found = diversity.distinct_shapes(shapes, ["a"] * 4, 1.0, shown)
  assert found.value == 0.5
  nothing = diversity.distinct_shapes(shapes, ["a"] * 4, 1.0, ~shown & shown)
  assert nothing.value == 0


def test_shape_threshold_is_the_median_nearest_distance():
  shapes = np.array([[0.0], [1.0], [3.0], [100.0], [104.0], [0.5]])
  labels = [0, 0, 0, 1, 1, 2]  # nearest: 1 1 2, 4 4; label 2 is alone
  assert diversity.shape_threshold(shapes, labels) == 2.0


def test_digit_consistency():
  frame_digits = np.array([[3, 3, 3, 3], [3, 3, 3, 8], [-1, -1, -1, 5]])
  whole, agreement = diversity.digit_consistency(frame_digits)
  assert whole.value == pytest.approx(1 / 3)
  assert agreement.value == pytest.approx((1 + 0.75 + 0.25) / 3)


def test_clips_without_any_digit_are_not_consistent():
  whole, agreement = diversity.digit_consistency(np.full((4, 8), -1))
  assert (whole.value, agreement.value) == (0, 0)


def test_single_samples_cannot_be_compared():
  with pytest.raises(ValueError, match="none of 5 captions has two samples"):
    diversity.diversity(PAIRS, list("abcde"))


def test_every_sample_needs_a_caption():
  with pytest.raises(ValueError, match="5 samples have 2 captions"):
    diversity.diversity(PAIRS, ["a", "b"])
