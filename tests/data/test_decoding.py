"""Files decoded at once come out in order, and no further than is needed."""

import threading
import time

import pytest

from dollar_jax.data.decoding import decode_in_order


def cut(file):
  """`file` clips; an odd file breaks off, and earlier ones take longer."""
  for i in range(file):
    time.sleep(0.002 * (5 - file))
    yield file, i
  if file % 2:
    raise ValueError(f"{file} broke")


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_order_is_that_of_the_files(threads):
  found = [
    (file, str(item) if isinstance(item, ValueError) else item)
    for file, item in decode_in_order(range(5), cut, threads)
  ]
  wanted = []
  for file in range(5):
    wanted += [(file, (file, i)) for i in range(file)]
    wanted.append((file, f"{file} broke" if file % 2 else None))
  assert found == wanted


def test_little_is_decoded_ahead_and_nothing_goes_on_afterwards():
  made = []

  def endless(file):
    while True:
      made.append(file)
      yield file

  before = threading.active_count()
  clips = decode_in_order(range(100), endless, 2)
  for _ in range(3):
    next(clips)
  time.sleep(0.1)
  assert len(made) <= 3 + 2 * 5 + 1
  assert set(made) == {0, 1}
  clips.close()
  until = time.monotonic() + 5
  while threading.active_count() > before and time.monotonic() < until:
    time.sleep(0.05)
  assert threading.active_count() == before


def test_a_fault_of_ours_is_raised():
  def broken(file):
    yield file
    raise KeyError("ours")

  clips = decode_in_order([1], broken, 1)
  assert next(clips) == (1, 1)
  with pytest.raises(KeyError, match="ours"):
    next(clips)
  with pytest.raises(ValueError, match="number of threads is 0"):
    next(decode_in_order([1], cut, 0))
