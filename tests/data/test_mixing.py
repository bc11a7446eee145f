"""Several sets in one stream: shares, shapes, hosts, and going on."""

import itertools
import json

import numpy as np
import pytest

from dollar_jax.data.mixing import mix_batches, parse_sources
from dollar_jax.data.pipeline import make_batches


class Numbers:
  """A source of `count` examples of one shape, which begin at `first`."""

  def __init__(self, count, first=0, width=2):
    self._count, self._first, self._width = count, first, width

  def __len__(self):
    return self._count

  def __getitem__(self, i):
    value = np.full((1, self._width), self._first + i, np.float32)
    return {"latents": value, "prompt": str(self._first + i)}


SETS = [Numbers(10), Numbers(40, 100), Numbers(9, 200, 3)]
WEIGHTS = [3.0, 1.0, 2.0]


def numbers(batches, count):
  """Numbers of the next `count` batches, one list a batch."""
  rows = itertools.islice(batches, count)
  return [row["latents"][:, 0, 0].astype(int).tolist() for row in rows]


def test_shares_are_those_of_the_weights():
  found = np.array(numbers(mix_batches(SETS, WEIGHTS, 4, 0), 600)) // 100
  shares = [(found == i).mean() for i in range(3)]
  np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 3], atol=0.01)


def test_a_batch_has_one_shape_and_a_bucket_mixes_its_sets():
  batches = mix_batches(SETS, WEIGHTS, 4, 0)
  kinds = [
    (row["latents"].shape, {int(x) // 100 for x in row["latents"][:, 0, 0]})
    for row in itertools.islice(batches, 60)
  ]
  shapes = {shape for shape, _ in kinds}
  assert shapes == {(4, 1, 2), (4, 1, 3)}
  for shape, sets in kinds:
    assert sets <= ({0, 1} if shape[-1] == 2 else {2})
  assert {0, 1} in [sets for _, sets in kinds]


def test_every_set_is_seen_whole_and_in_another_order_each_time():
  found = list(itertools.chain(*numbers(mix_batches(SETS, WEIGHTS, 4, 0), 90)))
  first = [x for x in found if x < 100]
  epochs = [first[i : i + 10] for i in range(0, 40, 10)]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1]
  other = numbers(mix_batches(SETS, WEIGHTS, 4, 1), 90)
  assert list(itertools.chain(*other)) != found


@pytest.mark.parametrize("count", [0, 1, 8])
def test_resuming_is_exact(count):
  batches = mix_batches(SETS, WEIGHTS, 4, 2)
  numbers(batches, count)
  state = json.loads(json.dumps(batches.get_state()))
  resumed = mix_batches(SETS, WEIGHTS, 4, 2)
  resumed.set_state(state)
  assert numbers(resumed, 40) == numbers(batches, 40)


def test_processes_share_every_batch():
  whole = mix_batches(SETS, WEIGHTS, 4, 0)
  parts = [mix_batches(SETS, WEIGHTS, 4, 0, rows) for rows in ([0, 3], [1, 2])]
  for wanted in numbers(whole, 50):
    [[a, d]], [[b, c]] = (numbers(part, 1) for part in parts)
    assert [a, b, c, d] == wanted
  assert parts[0].get_state() == whole.get_state()


def test_one_set_is_drawn_as_it_is_alone():
  mixed = numbers(mix_batches([Numbers(10)], [7.0], 3, 5), 20)
  assert mixed == numbers(make_batches(Numbers(10), 3, 5), 20)


def test_sets_of_one_shape_may_be_smaller_than_a_batch_alone():
  small = [Numbers(3), Numbers(2, 100)]
  found = numbers(mix_batches(small, [1, 1], 4, 0), 5)
  assert all({x // 100 for x in batch} == {0, 1} for batch in found)
  with pytest.raises(ValueError, match=r"holds 2 videos, fewer than .* of 4"):
    mix_batches([Numbers(8), Numbers(2, 0, 3)], [1, 1], 4, 0)


def test_sources_are_folders_with_weights(tmp_path):
  assert parse_sources("a") == {"a": None}
  assert parse_sources("a, b") == {"a": None, "b": None}
  assert parse_sources("a=2,b/c=0.5") == {"a": 2.0, "b/c": 0.5}
  odd = tmp_path / "lr=3"
  odd.mkdir()
  assert parse_sources(str(odd)) == {str(odd): None}
  comma = tmp_path / "a,b=2"
  comma.mkdir()
  assert parse_sources(str(comma)) == {str(comma): None}
  assert parse_sources(f"{odd}=3") == {str(odd): 3.0}


@pytest.mark.parametrize(
  "text, message",
  [
    ("a,,b", "an empty entry or one twice"),
    ("a=1,a=2", "an empty entry or one twice"),
    ("=1", "an empty entry"),
    ("a=1,b", "weights for some sets only"),
    ("a=0,b=1", "weight '0'; it must be a number above 0"),
    ("a=much", "weight 'much'"),
    ("a=,b=1", "weight ''"),
    ("a=nan", "weight 'nan'"),
    ("a=inf", "weight 'inf'"),
    ("a=-1", "weight '-1'"),
  ],
)
def test_what_is_no_list_of_sources_is_one_sentence(text, message):
  with pytest.raises(ValueError, match=message):
    parse_sources(text)
