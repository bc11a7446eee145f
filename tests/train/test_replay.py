"""The replay buffer keeps, draws and resumes what was labelled."""

import numpy as np
import pytest

from dollar_jax.train.labels import LabelledBatch
from dollar_jax.train.replay import LabelBuffer

SHAPE = (2, 2, 2, 3)
TEXT = np.ones((4, 3, 5), np.float32)
MASK = np.ones((4, 3), bool)


def _latents(seed, count=4):
  rng = np.random.default_rng(seed)
  return rng.uniform(0, 1, (count, *SHAPE)).astype(np.float32)


def _batch(step, count=4, valid=None, text=False):
  return LabelledBatch(
    latents=_latents(step, count),
    text=np.full((count, 3, 5), step, np.float32) if text else None,
    text_mask=np.ones((count, 3), bool) if text else None,
    values=np.arange(count, dtype=np.float32)[:, None] + 10 * step,
    valid=np.ones(count, bool) if valid is None else np.array(valid),
    step_submitted=np.full(count, step, np.int64),
  )


def test_buffer_keeps_the_latest_valid_samples_together():
  buffer = LabelBuffer(6, SHAPE, (3, 5))
  assert buffer.count == 0
  buffer.add(_batch(1, valid=[True, False, True, True], text=True))
  assert buffer.count == 3
  buffer.add(_batch(2, text=True))
  assert buffer.count == 6
  drawn = buffer.sample(6, step=0)
  # 10 was the oldest of seven
  assert sorted(drawn.values[:, 0]) == [12, 13, 20, 21, 22, 23]
  for i, value in enumerate(drawn.values[:, 0]):
    step, row = divmod(int(value), 10)
    np.testing.assert_array_equal(drawn.latents[i], _latents(step)[row])
    assert (drawn.text[i] == step).all()
    assert drawn.step_submitted[i] == step
  assert drawn.valid.all()
  assert drawn.text_mask.all()


def test_a_batch_larger_than_the_buffer_leaves_its_last():
  buffer = LabelBuffer(3, SHAPE)
  buffer.add(_batch(0, count=2))
  buffer.add(_batch(1, count=8))
  assert sorted(buffer.sample(3, 0).values[:, 0]) == [15, 16, 17]
  buffer.add(_batch(2, count=1))  # the ring goes on after the latest
  assert sorted(buffer.sample(3, 0).values[:, 0]) == [16, 17, 20]


def test_drawing_depends_on_seed_and_step_alone():
  def fill(seed):
    buffer = LabelBuffer(20, SHAPE, seed=seed)
    for step in range(4):
      buffer.add(_batch(step))
    return buffer

  one, two = fill(0), fill(0)
  two.sample(8, 3)  # drawing leaves no trace
  np.testing.assert_array_equal(
    one.sample(8, 5).values, two.sample(8, 5).values
  )
  draws = [one.sample(8, s).values[:, 0].tolist() for s in (5, 6)]
  draws.append(fill(1).sample(8, 5).values[:, 0].tolist())
  assert draws[0] != draws[1] != draws[2] != draws[0]
  assert all(len(set(draw)) == 8 for draw in draws)
  assert len(one.sample(50, 0).values) == 50  # more than there are


def test_buffer_state_round_trip_goes_on_where_it_stood():
  buffer = LabelBuffer(6, SHAPE, (3, 5))
  for step in range(2):
    buffer.add(_batch(step, text=True))
  state = buffer.state_dict()
  shapes = {name: np.shape(value) for name, value in state.items()}
  empty = LabelBuffer(6, SHAPE, (3, 5))
  assert shapes == {n: np.shape(v) for n, v in empty.state_dict().items()}
  empty.load_state(state)
  for twin in (buffer, empty):
    twin.add(_batch(7, count=3, text=True))
  for step in range(3):
    one, two = buffer.sample(4, step), empty.sample(4, step)
    for name in ("latents", "text", "text_mask", "values", "step_submitted"):
      np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
  # an asynchronous save reads the state after training has gone on
  assert sorted(state["values"][:, 0]) == [2, 3, 10, 11, 12, 13]


def test_buffer_explains_what_does_not_fit():
  buffer = LabelBuffer(6, SHAPE)
  with pytest.raises(ValueError, match="is empty; label a batch"):
    buffer.sample(1, 0)
  with pytest.raises(ValueError, match=r"latents .* \[4, 1, 2, 2, 3\]"):
    LabelBuffer(6, (1, 2, 2, 3)).add(_batch(0))
  with pytest.raises(ValueError, match="text of a labelled batch has shape"):
    LabelBuffer(6, SHAPE, (3, 5)).add(_batch(0))
  with pytest.raises(ValueError, match="same reward settings"):
    LabelBuffer(5, SHAPE).load_state(buffer.state_dict())
  with pytest.raises(ValueError, match="same reward settings"):
    LabelBuffer(6, SHAPE, (3, 5)).load_state(buffer.state_dict())
  with pytest.raises(ValueError, match="capacity of the label buffer is 0"):
    LabelBuffer(0, SHAPE)
