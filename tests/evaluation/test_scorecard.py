"""Rows of scores for real clips and for clips that fail in a known way."""

import json

import numpy as np
import pytest

from dollar_jax.evaluation.scorecard import evaluate_clips


def scores(judge, reference, clips, **change):
  given = {
    "frames": clips.frames,
    "digits": clips.digits,
    "directions": clips.directions,
    "captions": clips.captions,
    **change,
  }
  return evaluate_clips(judge, **given, reference_features=reference)


@pytest.fixture(scope="module")
def real(judge, reference, clips):
  return scores(judge, reference, clips)


def test_real_clips_score_well(real):
  for name in ("caption_accuracy", "digit_accuracy", "one_digit"):
    assert real[name] > 0.9, name
  assert real["direction_accuracy"] == real["frame_agreement"] == 1
  assert real["distinct_shapes"] > 0.8
  assert real["samples"] == 120


def test_a_row_is_json_and_every_value_lies_in_its_interval(real):
  assert json.loads(json.dumps(real)) == real
  names = [name for name in real if f"{name}_interval" in real]
  assert len(real) == 2 * len(names) + 1
  for name in names:
    low, high = real[f"{name}_interval"]
    assert low <= real[name] <= high, name


def test_accuracy_is_about_what_was_asked_for(judge, reference, clips, real):
  asked = scores(judge, reference, clips, digits=(clips.digits + 1) % 10)
  assert asked["digit_accuracy"] < 0.05
  assert asked["caption_accuracy"] < 0.05
  assert asked["direction_accuracy"] == 1
  turned = scores(judge, reference, clips, directions=3 - clips.directions)
  assert turned["caption_accuracy"] == turned["direction_accuracy"] == 0
  assert turned["digit_accuracy"] == real["digit_accuracy"]


def test_a_collapsed_model_is_accurate_and_not_diverse(
  judge, reference, clips, real
):
  first = {
    caption: i for i, caption in reversed(list(enumerate(clips.captions)))
  }
  frames = clips.frames[[first[caption] for caption in clips.captions]]
  collapsed = scores(judge, reference, clips, frames=frames)
  assert collapsed["caption_accuracy"] > 0.9
  assert collapsed["diversity"] == pytest.approx(0, abs=1e-3)
  assert collapsed["distinct_shapes"] == pytest.approx(1 / 3, abs=0.02)
  assert collapsed["frechet"] > real["frechet"]


def test_black_clips_score_nothing(judge, reference, clips):
  black = scores(judge, reference, clips, frames=np.zeros_like(clips.frames))
  for name in (
    "caption_accuracy",
    "direction_accuracy",
    "diversity",
    "distinct_shapes",
    "frame_agreement",
    "one_digit",
  ):
    assert black[name] == 0, name
  assert black["frechet"] > 50


def test_lengths_must_agree(judge, reference, clips):
  with pytest.raises(ValueError, match="120 clips have 119 digits"):
    scores(judge, reference, clips, digits=clips.digits[1:])
