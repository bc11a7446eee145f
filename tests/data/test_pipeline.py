"""Batches: every example once an epoch, and resumed where they stopped."""

import itertools
import json
import time

import numpy as np
import pytest

from dollar_jax.data import latents
from dollar_jax.data.mixing import mix_batches
from dollar_jax.data.pipeline import ReadAhead, batch_bytes, make_batches


class Numbers:
  """A source of `count` examples that know their own index."""

  def __init__(self, count):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, i):
    prompt = "word " * (i % 5) + str(i)
    return {
      "latents": np.full((1, 2), i, np.float32),
      "prompt": prompt.encode() if i % 2 else prompt,
    }


def _epoch(batches, count):
  """Indices of the next `count` batches, in one list."""
  return list(itertools.chain(*_indices(batches, count)))


def _indices(batches, count):
  """Indices of the next `count` batches, one list a batch."""
  rows = itertools.islice(batches, count)
  return [row["latents"][:, 0, 0].astype(int).tolist() for row in rows]


def test_every_epoch_has_all_examples_in_another_order():
  batches = make_batches(Numbers(12), 4, seed=0)
  epochs = [_epoch(batches, 3) for _ in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert epochs[0] != epochs[1] != epochs[2]
  assert epochs[0] != sorted(epochs[0])


def test_order_is_the_seeds():
  first, again, other = (
    _indices(make_batches(Numbers(12), 4, seed), 6) for seed in (3, 3, 4)
  )
  assert first == again != other


def test_prompts_are_strings_of_any_length():
  batch = next(make_batches(Numbers(12), 12, seed=0))
  for i, prompt in zip(batch["latents"][:, 0, 0], batch["prompt"], strict=True):
    assert prompt == "word " * (int(i) % 5) + str(int(i))


@pytest.mark.parametrize("drawn", [0, 1, 7])
def test_resuming_is_exact(drawn):
  batches = make_batches(Numbers(10), 3, seed=1)
  _indices(batches, drawn)
  state = json.loads(json.dumps(batches.get_state()))  # as a checkpoint does
  wanted = _indices(batches, 9)  # well into later epochs
  resumed = make_batches(Numbers(10), 3, seed=1)
  resumed.set_state(state)
  assert _indices(resumed, 9) == wanted


def test_processes_share_a_batch():
  whole = make_batches(Numbers(12), 4, 0)
  parts = [make_batches(Numbers(12), 4, 0, rows) for rows in ([0, 3], [1, 2])]
  for _ in range(7):  # well into later epochs
    wanted = _epoch(whole, 1)
    (a, d), (b, c) = (_epoch(part, 1) for part in parts)
    assert [a, b, c, d] == wanted
  assert parts[0].get_state() == whole.get_state()


def test_latent_set_goes_in_as_it_is_read(prepared):
  batch = next(make_batches(latents.read(prepared / "latents"), 4, seed=0))
  shapes = {name: value.shape for name, value in batch.items()}
  assert shapes == {
    "latents": (4, 2, 3, 4, 5),
    "text": (4, 3, 7),
    "text_mask": (4, 3),
    "prompt": (4,),
  }
  for i in range(4):  # rows stay together
    number = int(batch["latents"][i, 0, 0, 0, 0])
    assert batch["prompt"][i] == f"prompt {number} ü"
    assert batch["text"][i, 0, 0] == -number


def test_a_set_smaller_than_a_batch_is_refused():
  with pytest.raises(ValueError, match=r"holds 3 videos, fewer than .* of 4"):
    make_batches(Numbers(3), 4, seed=0)
  with pytest.raises(ValueError, match=r"lower data\.batch_size"):
    make_batches(Numbers(3), 4, seed=0, rows=[0, 1])
  assert _indices(make_batches(Numbers(4), 4, seed=0), 1)


class Asked(Numbers):
  """Counts what it is asked for."""

  asked = 0

  def __getitem__(self, i):
    self.asked += 1
    return super().__getitem__(i)

  def settled(self):
    """How often it was asked once nobody asks any more."""
    seen = -1
    while seen != self.asked:
      seen = self.asked
      time.sleep(0.2)
    return seen


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_no_more_is_read_than_was_asked_for(batches):
  source = Asked(40)
  drawn = make_batches(source, 4, 0, ahead=ReadAhead(batches))
  next(drawn)
  # and one example, for its shape
  assert source.settled() == 1 + 4 * (1 + batches)
  next(drawn)
  assert source.settled() == 1 + 4 * (2 + batches)


def test_one_batch_is_read_ahead_unless_told_otherwise():
  source, parts = Asked(40), Asked(40)
  next(make_batches(source, 4, 0))
  assert source.settled() == 1 + 2 * 4
  next(mix_batches([parts], [1.0], 4, 0, rows=[0]))
  assert parts.settled() == 1 + 2


@pytest.mark.parametrize("room, count", [(0.9, 0), (2.5, 2), (1e9, 8)])
def test_bytes_limit_what_is_read_ahead(room, count):
  source = Asked(40)
  size = batch_bytes(Numbers(1)[0], 4)
  assert ReadAhead(8, room * size).count(size) == count
  drawn = make_batches(source, 4, 0, ahead=ReadAhead(8, room * size))
  first = next(drawn)
  assert source.settled() == 1 + 4 * (1 + count)
  assert first["latents"].shape == (4, 1, 2)


def test_the_largest_of_several_shapes_is_what_bytes_are_of():
  small, large = Asked(40), Wide(40)
  limit = 2 * batch_bytes(large[0], 4)
  large.asked = 0
  next(mix_batches([small, large], [1.0, 1.0], 4, 0, None, ReadAhead(9, limit)))
  assert small.settled() + large.settled() == 2 + 4 * 3


class Wide(Asked):
  """Examples as `Asked`, ten times as large."""

  def __getitem__(self, i):
    example = super().__getitem__(i)
    return example | {"latents": np.repeat(example["latents"], 10, 1)}


class Uneven(Numbers):
  """Examples of which every second has a longer text."""

  def __getitem__(self, i):
    return super().__getitem__(i) | {"text": np.zeros((1 + i % 2, 3))}


def test_rows_of_two_shapes_make_no_batch():
  with pytest.raises(ValueError, match=r"has text of shapes .* alike"):
    next(make_batches(Uneven(12), 12, 0))
