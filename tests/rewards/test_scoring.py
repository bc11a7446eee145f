"""Rewards that raise, hang or return nonsense are survived and counted."""

import re
import threading

import numpy as np
import pytest

from dollar_jax.rewards.base import Reward
from dollar_jax.rewards.scoring import Failures, Patience, score


@pytest.fixture
def frames():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (4, 5, 8, 8, 3), dtype=np.uint8)


def _brightness(frames, prompts):
  return frames.mean(axis=(1, 2, 3, 4))


def test_values_pass_through(frames):
  reward = Reward("brightness", _brightness)
  values, failures = score(reward, frames, [""] * 4)
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, frames.mean((1, 2, 3, 4)), rtol=1e-6)
  assert failures == Failures(0, 4)


def _raises(frames, prompts):
  raise TimeoutError("service is down")


@pytest.mark.parametrize(
  "fn, lost, reason",
  [
    (_raises, [0, 1, 2, 3], "TimeoutError: service is down"),
    (lambda f, p: np.zeros((4, 1)), [0, 1, 2, 3], r"shape \(4, 1\)"),
    (lambda f, p: np.float32(1), [0, 1, 2, 3], r"shape \(\)"),
    (lambda f, p: None, [0, 1, 2, 3], "."),
    (lambda f, p: ["a"] * 4, [0, 1, 2, 3], "ValueError"),
    (lambda f, p: [1.0, np.nan, 2.0, -np.inf], [1, 3], "2 of 4 values not fin"),
    (lambda f, p: np.array([1.0, 2.0, 1e300, 3.0]), [2], "1 of 4 values"),
  ],
)
def test_failures_are_counted_and_masked(frames, fn, lost, reason):
  values, failures = score(Reward("bad", fn), frames, [""] * 4)
  assert np.flatnonzero(np.isnan(values)).tolist() == lost
  assert np.isfinite(np.delete(values, lost)).all()
  assert values.shape == (4,)
  assert (failures.count, failures.total) == (len(lost), 4)
  assert re.search(reason, failures.reason)


def test_the_callers_mistakes_are_not_the_rewards(frames):
  reward = Reward("brightness", _brightness)
  with pytest.raises(ValueError, match="4 clips came with 3 prompts"):
    score(reward, frames, [""] * 3)
  with pytest.raises(ValueError, match=r"float32 \[4, 5, 8, 8, 3\]; rewards"):
    score(reward, frames.astype(np.float32), [""] * 4)
  with pytest.raises(ValueError, match="take uint8"):
    score(reward, frames[..., 0], [""] * 4)


def test_a_call_that_gave_nothing_is_made_again(frames):
  calls = []

  def shaky(frames, prompts):
    calls.append(len(frames))
    if len(calls) < 3:
      raise OSError("busy")
    return np.arange(4)

  reward = Reward("shaky", shaky)
  values, failures = score(reward, frames, [""] * 4, Patience(retries=2))
  np.testing.assert_array_equal(values, np.arange(4))
  assert failures == Failures(0, 4, retries=2)

  calls.clear()
  _, failures = score(reward, frames, [""] * 4, Patience(retries=1))
  assert failures == Failures(4, 4, "OSError: busy", retries=1)


def test_a_call_with_some_values_is_not_made_again(frames):
  calls = []

  def patchy(frames, prompts):
    calls.append(len(frames))
    return [1, np.nan, 3, 4]

  reward, patience = Reward("patchy", patchy), Patience(retries=5)
  _, failures = score(reward, frames, [""] * 4, patience)
  assert len(calls) == 1
  assert (failures.count, failures.retries) == (1, 0)


def test_a_call_that_hangs_is_given_up(frames):
  stop = threading.Event()

  def hang(frames, prompts):
    stop.wait()

  reward = Reward("hang", hang)
  patience = Patience(timeout=0.05, retries=1)
  values, failures = score(reward, frames, [""] * 4, patience)
  stop.set()
  assert np.isnan(values).all()
  assert failures == Failures(4, 4, "TimeoutError: no value within 0.05 s", 1)


def test_within_its_time_a_call_is_as_any_other(frames):
  patience = Patience(timeout=60)
  values, _ = score(Reward("b", _brightness), frames, [""] * 4, patience)
  np.testing.assert_allclose(values, frames.mean((1, 2, 3, 4)), rtol=1e-6)
  _, failures = score(Reward("bad", _raises), frames, [""] * 4, patience)
  assert failures.reason == "TimeoutError: service is down"


@pytest.mark.parametrize("name", ["timeout", "retries"])
def test_patience_has_limits(name):
  with pytest.raises(ValueError, match=f"{name} of a reward is -1; it must be"):
    Patience(**{name: -1})
