"""Labelling: in line, in the background, with rewards that fail."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.rewards.base import Failures, Reward
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


BRIGHTNESS = Reward("brightness", _brightness, "image")
TEXT = np.ones((4, 3, 5), np.float32)
MASK = np.ones((4, 3), bool)
both_modes = pytest.mark.parametrize("background", [False, True])


@both_modes
def test_labels_are_the_reward_of_the_decoded_latents(background):
  with Labeller(_decode, BRIGHTNESS, background=background) as labeller:
    for step in range(5):
      labeller.submit(
        step, jnp.asarray(_latents(step)), TEXT + step, MASK, PROMPTS
      )
    batches = labeller.collect(block=True)
    assert labeller.collect(block=True) == []  # each once
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
    np.testing.assert_allclose(batch.values, expected, rtol=1e-5)
    assert batch.valid.all()
  assert labeller.counts == LabelCounts(calls=5)


def test_in_line_labels_are_there_at_once():
  labeller = Labeller(_decode, BRIGHTNESS)
  labeller.submit(0, _latents(0), None, None, PROMPTS)
  (batch,) = labeller.collect()
  assert batch.text is None
  assert not any(t.name == "labeller" for t in threading.enumerate())


def test_background_does_not_hold_up_the_caller():
  release = threading.Event()

  def slow(frames, prompts):
    assert release.wait(20)
    return _brightness(frames, prompts)

  with Labeller(
    _decode, Reward("slow", slow), max_queue=2, background=True
  ) as labeller:
    x0 = _latents(0)
    labeller.submit(0, x0, None, None, PROMPTS)
    labeller.submit(1, x0, None, None, PROMPTS)
    assert labeller.collect() == []  # does not wait
    assert labeller.pending == 2
    x0[:] = 0  # the caller's array is the caller's
    release.set()
    batches = labeller.collect(block=True)
  assert len(batches) == 2
  np.testing.assert_array_equal(batches[1].latents, _latents(0))


def test_the_queue_is_bounded():
  release = threading.Event()
  submitted = []

  def slow(frames, prompts):
    assert release.wait(20)
    return _brightness(frames, prompts)

  with Labeller(
    _decode, Reward("slow", slow), max_queue=1, background=True
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
    assert len(labeller.collect(block=True)) == 4


@both_modes
def test_a_reward_that_raises_in_a_third_of_calls_is_survived(background):
  rng = np.random.default_rng(0)
  fate = rng.uniform(size=40) < 0.3

  def flaky(frames, prompts):
    if fate[labeller.counts.calls]:
      raise ConnectionError("try later")
    return _brightness(frames, prompts)

  with Labeller(
    _decode,
    Reward("flaky", flaky),
    max_failures=6,
    max_queue=40,
    background=background,
  ) as labeller:
    for step in range(40):
      labeller.submit(step, _latents(step), None, None, PROMPTS)
    batches = labeller.collect(block=True)
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

  labeller = Labeller(_decode, Reward("patchy", patchy), max_failures=1)
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


@both_modes
@pytest.mark.parametrize(
  "fn, reason",
  [
    (lambda f, p: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda f, p: np.full(4, np.nan), "4 of 4 values not finite"),
    (lambda f, p: np.zeros(3), r"returned shape \(3,\) instead of \(4,\)"),
  ],
)
def test_a_reward_that_never_works_stops_the_run(background, fn, reason):
  labeller = Labeller(
    _decode, Reward("bad", fn), max_failures=3, background=background
  )
  message = (
    f"reward 'bad' failed in 3 calls in a row, the last with '.*{reason}"
  )

  def run():
    for step in range(3):
      labeller.submit(step, _latents(step), None, None, PROMPTS)
    labeller.collect(block=True)

  with pytest.raises(ValueError, match=message):
    run()
  labeller.close()


@both_modes
def test_an_error_that_is_not_the_rewards_surfaces(background):
  def broken(x0):
    raise MemoryError("no room to decode")

  def run():
    labeller.submit(0, _latents(0), None, None, PROMPTS)
    labeller.collect(block=True)

  labeller = Labeller(broken, BRIGHTNESS, background=background)
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

  labeller = Labeller(broken, BRIGHTNESS, background=True)
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
    with Labeller(broken, BRIGHTNESS, background=True) as labeller:
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

  labeller = Labeller(
    _decode, Reward("slow", slow), max_queue=5, background=True
  )
  for step in range(4):
    labeller.submit(step, _latents(step), None, None, PROMPTS)
  assert started.wait(20)
  threading.Timer(0.2, release.set).start()
  labeller.close()
  assert scored == [1]
  assert labeller.pending == 0
  assert len(labeller.collect(block=True)) == 1  # and does not wait for ever
  assert not any(t.name == "labeller" for t in threading.enumerate())
  with pytest.raises(RuntimeError, match="closed"):
    labeller.submit(9, _latents(9), None, None, PROMPTS)


@pytest.mark.parametrize("name", ["max_queue", "max_failures"])
def test_limits_below_one_are_refused(name):
  with pytest.raises(ValueError, match=f"{name} of labelling is 0"):
    Labeller(_decode, BRIGHTNESS, **{name: 0})


def test_spearman_is_of_ranks_and_skips_what_is_missing():
  true = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
  assert spearman(np.exp(true), true) == pytest.approx(1.0)
  assert spearman(-np.exp(true), true) == pytest.approx(-1.0)
  # ranks 1 2 3 4 against 2 1 3 4: 1 - 6 * 2 / (4 * 15)
  assert spearman([2, 1, 99, 3, 4], true) == pytest.approx(0.8)


@pytest.mark.parametrize("true", [[1.0, 2.0], [5.0] * 4, [1.0, np.nan, 2.0]])
def test_spearman_of_too_little_is_unknown(true):
  assert np.isnan(spearman(np.arange(len(true)), true))
