"""Several files decoded at once, given out in order, in bounded memory."""

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_AHEAD = 4
"""Clips of one file that may wait to be taken."""


def decode_in_order(
  files: Iterable[Item], cut: Callable[[Item], Iterator[Any]], threads: int
) -> Iterator[tuple[Item, Any]]:
  """Runs `cut` on `threads` files at once.

  FFmpeg decodes without holding Python's lock, so that threads suffice.

  Args:
    files: what is cut, in the order in which it is given out.
    cut: makes the clips of one file; a ValueError is its last one.
    threads: files at once, at least 1.

  Yields:
    (file, clip), then (file, the ValueError or None) where the file ends.

  Raises:
    ValueError: if threads is below 1.
  """
  if threads < 1:
    raise ValueError(f"number of threads is {threads}; it must be at least 1")
  waiting, rest, stop = collections.deque(), iter(files), threading.Event()

  def start_one() -> None:
    for file in rest:
      waiting.append((file, _start(file, cut, stop)))
      return

  try:
    for _ in range(threads):
      start_one()
    while waiting:
      file, clips = waiting.popleft()
      while True:
        last, item = clips.get()
        if last and not isinstance(item, ValueError | None):
          raise item
        yield file, item
        if last:
          break
      start_one()
  finally:
    stop.set()  # who waits for room in a queue ends


def _start(
  file: Item, cut: Callable[[Item], Iterator[Any]], stop: threading.Event
) -> queue.Queue:
  """A queue that fills with (is last, clip, or how the file ended)."""
  clips = queue.Queue(_AHEAD)

  def put(last: bool, item: Any) -> bool:
    while not stop.is_set():
      try:
        clips.put((last, item), timeout=0.2)
        return True
      except queue.Full:
        continue
    return False

  def work() -> None:
    end = None
    try:
      for clip in cut(file):
        if not put(False, clip):
          return
    except BaseException as error:  # whoever takes the clips raises it
      end = error
    put(True, end)

  threading.Thread(target=work, daemon=True).start()
  return clips
