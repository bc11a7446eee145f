"""Clips beside real ones: what is told, and what is left out and why."""

import numpy as np
import pytest

from dollar_jax.evaluation import comparison, diversity, frechet


def features(count, seed, width=4):
  return np.random.default_rng(seed).normal(size=(count, width))


def test_everything_where_there_is_enough():
  captions, real_captions = ["a", "b"] * 20, ["a", "b"] * 50
  ours, real = features(40, 0) + 1, features(100, 1)
  row = comparison.compare(ours, captions, real, real_captions)
  assert row["left_out"] == {}
  assert (row["samples"], row["reference_samples"]) == (40, 100)
  assert row["frechet"] == frechet.frechet_distance(ours, real)
  assert row["frechet_floor"] == frechet.frechet_floor(real, 40, real_captions)
  assert row["diversity"] == diversity.diversity(ours, captions).value
  # four means are apart by 1 each
  low, high = row["frechet_extrapolated_interval"]
  assert low < 4 < high
  assert row["frechet_extrapolated"] < row["frechet"]
  assert row["frechet_floor"] < 1


@pytest.mark.parametrize(
  "count, real, left_out",
  [
    (1, 100, {"diversity", "frechet", "frechet_extrapolated", "frechet_floor"}),
    (7, 100, {"frechet_extrapolated"}),
    (40, 79, {"frechet_floor"}),
    (40, 7, {"frechet_extrapolated", "frechet_floor"}),
    (40, None, {"frechet", "frechet_extrapolated", "frechet_floor"}),
  ],
)
def test_too_few_clips_are_a_reason_and_no_number(count, real, left_out):
  reference = None if real is None else features(real, 1)
  row = comparison.compare(features(count, 0), ["a"] * count, reference)
  assert set(row["left_out"]) == left_out
  assert all(row[name] is None for name in left_out)
  assert {name for name in row if row[name] is None} == left_out


def test_captions_of_one_clip_are_resampled_together():
  """A group of one would look as if nothing could vary."""
  captions = [str(i) for i in range(39)] + ["0"]
  row = comparison.compare(features(40, 0), captions, features(100, 1))
  plain = frechet.frechet_interval(features(40, 0), features(100, 1))
  assert row["frechet_interval"] == [plain.low, plain.high]
