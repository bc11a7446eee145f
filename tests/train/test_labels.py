"""Labelling: in line, in the background, with rewards that fail."""

import math
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.rewards.base import Reward
from dollar_jax.rewards.mixture import Mixture
from dollar_jax.rewards.scoring import Failures, Patience
from dollar_jax.train.labels import (
  LabelCounts,
  Labeller,
  spearman,
)

SHAPE = (2, 2, 2, 3)
PROMPTS = ["a", "b", "c", "d"]


def _latents(seed, count=4):
  rng = np.random.default_rng(seed)
  return rng.uniform(0, 1, (count, *SHAPE)).astype(np.float32)


def _decode(x0):
  return jnp.round(255 * jnp.asarray(x0)).astype(jnp.uint8)


def _brightness(frames, prompts):
  return frames.mean(axis=(1, 2, 3, 4))


def _alone(name, fn):
  return Mixture(name, (Reward(name, fn),), (1.0,))


BRIGHTNESS = _alone("brightness", _brightness)
TEXT = np.ones((4, 3, 5), np.float32)
MASK = np.ones((4, 3), bool)
every_mode = pytest.mark.parametrize("workers", [0, 1, 3])


@every_mode
def test_labels_are_the_reward_of_the_decoded_latents(workers):
  with Labeller(_decode, BRIGHTNESS, workers=workers) as labeller:
    for step in range(5):
      labeller.submit(
        step, jnp.asarray(_latents(step)), TEXT + step, MASK, PROMPTS
      )
    batches = labeller.collect(math.inf)
    assert labeller.collect(math.inf) == []  # each once
    assert labeller.pending == 0
  assert [batch.step_submitted.tolist() for batch in batches] == [
    [step] * 4 for step in range(5)
  ]
  for step, batch in enumerate(batches):
    np.testing.assert_array_equal(batch.latents, _latents(step))
    np.testing.assert_array_equal(batch.text, TEXT + step)
    np.testing.assert_array_equal(batch.text_mask, MASK)
    assert type(batch.latents) is np.ndarray
    assert batch.values.dtype == np.float32
    expected = np.round(255 * _latents(step)).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(batch.values[:, 0], expected, rtol=1e-5)
    assert batch.valid.all()
  assert labeller.counts == LabelCounts(calls=5)


def test_in_line_labels_are_there_at_once():
  labeller = Labeller(_decode, BRIGHTNESS)
  labeller.submit(0, _latents(0), None, None, PROMPTS)
  (batch,) = labeller.collect()
  assert batch.text is None
  assert not any(t.name.startswith("labeller") for t in threading.enumerate())


def test_background_does_not_hold_up_the_caller():
  release = threading.Event()

  def slow(frames, prompts):
    assert release.wait(20)
    return _brightness(frames, prompts)

  with Labeller(
    _decode, _alone("slow", slow), max_queue=2, workers=1
  ) as labeller:
    x0 = _latents(0)
    labeller.submit(0, x0, None, None, PROMPTS)
    labeller.submit(1, x0, None, None, PROMPTS)
    assert labeller.collect() == []  # does not wait
    assert labeller.pending == 2
    x0[:] = 0  # the caller's array is the caller's
    release.set()
    batches = labeller.collect(math.inf)
  assert len(batches) == 2
  np.testing.assert_array_equal(batches[1].latents, _latents(0))


def test_the_queue_is_bounded():
  release = threading.Event()
  submitted = []

  def slow(frames, prompts):
    assert release.wait(20)
    return _brightness(frames, prompts)

  with Labeller(
    _decode, _alone("slow", slow), max_queue=1, workers=1
  ) as labeller:

    def submit():
      for step in range(4):
        labeller.submit(step, _latents(step), None, None, PROMPTS)
        submitted.append(step)

    caller = threading.Thread(target=submit)
    caller.start()
    time.sleep(0.3)
    # one in hand, one waiting, and the third stands at the door
    assert submitted == [0, 1]
    release.set()
    caller.join(20)
    assert submitted == [0, 1, 2, 3]
    assert len(labeller.collect(math.inf)) == 4


@every_mode
def test_a_reward_that_raises_in_a_third_of_calls_is_survived(workers):
  rng = np.random.default_rng(0)
  fate = rng.uniform(size=40) < 0.3

  def flaky(frames, prompts):
    if fate[int(prompts[0])]:
      raise ConnectionError("try later")
    return _brightness(frames, prompts)

  with Labeller(
    _decode,
    _alone("flaky", flaky),
    max_failures=10,
    max_queue=40,
    workers=workers,
  ) as labeller:
    for step in range(40):
      labeller.submit(step, _latents(step), None, None, [str(step)] * 4)
    batches = labeller.collect(math.inf)
  assert 5 < fate.sum() < 20
  assert len(batches) == 40
  assert [not batch.valid.any() for batch in batches] == fate.tolist()
  assert np.isnan(batches[int(np.argmax(fate))].values).all()
  counts = labeller.counts
  assert (counts.calls, counts.failed_calls) == (40, fate.sum())
  assert counts.failed_labels == 4 * fate.sum()


def test_part_of_a_batch_may_fail():
  def patchy(frames, prompts):
    return np.where(np.arange(4) % 2, np.nan, _brightness(frames, prompts))

  labeller = Labeller(_decode, _alone("patchy", patchy), max_failures=1)
  for step in range(3):  # some labels came, so no call has failed
    labeller.submit(step, _latents(step), None, None, PROMPTS)
  assert labeller.counts == LabelCounts(calls=3, failed_labels=6)
  batch = labeller.collect()[0]
  assert batch.valid.tolist() == [True, False, True, False]


def test_counts_forget_a_row_of_failures_at_the_first_label():
  counts = LabelCounts()
  for lost in (4, 4, 1, 4):
    counts = counts.after(Failures(lost, 4, "why"))
  assert counts == LabelCounts(4, 3, 1, 13)


@every_mode
@pytest.mark.parametrize(
  "fn, reason",
  [
    (lambda f, p: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda f, p: np.full(4, np.nan), "4 of 4 values not finite"),
    (lambda f, p: np.zeros(3), r"returned shape \(3,\) instead of \(4,\)"),
  ],
)
def test_a_reward_that_never_works_stops_the_run(workers, fn, reason):
  labeller = Labeller(
    _decode, _alone("bad", fn), max_failures=3, workers=workers
  )
  message = (
    f"reward 'bad' failed in 3 calls in a row, the last with '.*{reason}"
  )

  def run():
    for step in range(3):
      labeller.submit(step, _latents(step), None, None, PROMPTS)
    labeller.collect(math.inf)

  with pytest.raises(ValueError, match=message):
    run()
  labeller.close()


@every_mode
def test_an_error_that_is_not_the_rewards_surfaces(workers):
  def broken(x0):
    raise MemoryError("no room to decode")

  def run():
    labeller.submit(0, _latents(0), None, None, PROMPTS)
    labeller.collect(math.inf)

  labeller = Labeller(broken, BRIGHTNESS, workers=workers)
  with pytest.raises(MemoryError, match="no room"):
    run()
  with pytest.raises(MemoryError, match="no room"):  # and stays
    run()
  labeller.close()  # was told already


def test_a_decoder_of_the_wrong_kind_is_not_the_rewards_failure():
  labeller = Labeller(lambda x0: x0, BRIGHTNESS)
  with pytest.raises(ValueError, match="frames are float32"):
    labeller.submit(0, _latents(0), None, None, PROMPTS)
  assert labeller.counts == LabelCounts()


def test_close_tells_an_error_that_nobody_heard():
  started = threading.Event()

  def broken(x0):
    started.set()
    raise MemoryError("no room to decode")

  labeller = Labeller(broken, BRIGHTNESS, workers=1)
  labeller.submit(0, _latents(0), None, None, PROMPTS)
  assert started.wait(20)
  with pytest.raises(MemoryError):
    labeller.close()
  labeller.close()


def test_an_error_on_the_way_out_is_not_covered_by_the_threads():
  started = threading.Event()

  def broken(x0):
    started.set()
    raise MemoryError("no room to decode")

  def run():
    with Labeller(broken, BRIGHTNESS, workers=1) as labeller:
      labeller.submit(0, _latents(0), None, None, PROMPTS)
      assert started.wait(20)
      raise KeyError("mine")

  with pytest.raises(KeyError, match="mine"):
    run()


def test_close_ends_the_thread_and_drops_what_waits():
  started, release = threading.Event(), threading.Event()
  scored = []

  def slow(frames, prompts):
    started.set()
    assert release.wait(20)
    scored.append(1)
    return _brightness(frames, prompts)

  labeller = Labeller(_decode, _alone("slow", slow), max_queue=5, workers=1)
  for step in range(4):
    labeller.submit(step, _latents(step), None, None, PROMPTS)
  assert started.wait(20)
  threading.Timer(0.2, release.set).start()
  labeller.close()
  assert scored == [1]
  assert labeller.pending == 0
  assert labeller.collect(math.inf) == []  # and does not wait for ever
  assert not any(t.name.startswith("labeller") for t in threading.enumerate())
  with pytest.raises(RuntimeError, match="closed"):
    labeller.submit(9, _latents(9), None, None, PROMPTS)


def test_labels_come_in_the_order_of_their_latents():
  release = threading.Event()

  def first_is_slow(frames, prompts):
    if prompts[0] == "0":
      assert release.wait(20)
    return _brightness(frames, prompts)

  rewards = _alone("slow", first_is_slow)
  with Labeller(_decode, rewards, workers=2, max_queue=9) as labeller:
    for step in range(3):
      labeller.submit(step, _latents(step), None, None, [str(step)] * 4)
    while labeller.pending > 1:
      time.sleep(0.01)
    assert labeller.collect() == []
    release.set()
    batches = labeller.collect(math.inf)
  assert [batch.step_submitted[0] for batch in batches] == [0, 1, 2]


def test_only_what_is_old_is_waited_for():
  release = threading.Event()

  def last_is_slow(frames, prompts):
    if prompts[0] == "2":
      assert release.wait(20)
    return _brightness(frames, prompts)

  rewards = _alone("slow", last_is_slow)
  with Labeller(_decode, rewards, workers=1, max_queue=9) as labeller:
    for step in range(3):
      labeller.submit(step, _latents(step), None, None, [str(step)] * 4)
    batches = labeller.collect(until=1)
    assert [batch.step_submitted[0] for batch in batches] == [0, 1]
    release.set()


def test_a_batch_that_failed_is_made_again_and_counted():
  calls = []

  def shaky(frames, prompts):
    calls.append(1)
    if len(calls) == 1:
      raise ConnectionError("try later")
    return _brightness(frames, prompts)

  rewards = _alone("shaky", shaky)
  labeller = Labeller(_decode, rewards, patience=Patience(retries=1))
  labeller.submit(0, _latents(0), None, None, PROMPTS)
  assert labeller.counts == LabelCounts(calls=1, retries=1)


@pytest.mark.parametrize(
  ("name", "value"), [("workers", -1), ("max_queue", 0), ("max_failures", 0)]
)
def test_numbers_below_their_limits_are_refused(name, value):
  with pytest.raises(ValueError, match=f"{name} of labelling is {value}"):
    Labeller(_decode, BRIGHTNESS, **{name: value})


def test_spearman_is_of_ranks_and_skips_what_is_missing():
  true = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
  assert spearman(np.exp(true), true) == pytest.approx(1.0)
  assert spearman(-np.exp(true), true) == pytest.approx(-1.0)
  # ranks 1 2 3 4 against 2 1 3 4: 1 - 6 * 2 / (4 * 15)
  assert spearman([2, 1, 99, 3, 4], true) == pytest.approx(0.8)


@pytest.mark.parametrize("true", [[1.0, 2.0], [5.0] * 4, [1.0, np.nan, 2.0]])
def test_spearman_of_too_little_is_unknown(true):
  assert np.isnan(spearman(np.arange(len(true)), true))
