"""Where a run's time went: its longest files, and its rooms by their budgets.

Seconds are those of the processes of `pytest -n` added up, each test's own
set-up and the fixtures that it was the first to ask for included.
"""

import collections
import pathlib
import re
from collections.abc import Iterator, Mapping

import pytest

LONGEST = 10
"""Files that are listed."""

ROW = re.compile(r"^\| `tests/(\w*)` \| (\d+) \|$", re.MULTILINE)
"""A budget: the room, or nothing for the files beside the rooms; seconds."""


def room_of(file: str) -> str:
  """Returns the room of `tests/ROOM/FILE`; "" for `tests/FILE`."""
  return "/".join(pathlib.PurePosixPath(file).parts[1:-1])


def read_budgets(text: str) -> dict[str, int]:
  """Returns the seconds of each room that a document's table allows."""
  return {room: int(seconds) for room, seconds in ROW.findall(text)}


class Durations:
  """Adds up the seconds of every file and reports them at the end."""

  def __init__(self, budgets: Mapping[str, int]):
    self._budgets = budgets
    self._seconds = collections.Counter()

  def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
    """Counts one phase of one test."""
    self._seconds[report.nodeid.partition("::")[0]] += report.duration

  def pytest_terminal_summary(
    self, terminalreporter: pytest.TerminalReporter
  ) -> None:
    """Prints files, rooms and warnings."""
    terminalreporter.section("seconds of files and rooms")
    for line in self.lines():
      terminalreporter.write_line(line)

  def lines(self) -> Iterator[str]:
    """Yields what is to be printed."""
    for file, seconds in self._seconds.most_common(LONGEST):
      yield f"{seconds:6.1f} {file}"
    rooms = collections.Counter()
    for file, seconds in self._seconds.items():
      rooms[room_of(file)] += seconds
    for room, seconds in rooms.most_common():
      budget = self._budgets.get(room)
      yield f"{seconds:6.1f} tests/{room}, of {budget}"
    yield f"{rooms.total():6.1f} in all"
    for room, seconds in rooms.items():
      if seconds > self._budgets.get(room, 0):
        yield (
          f"warning: tests/{room} took {seconds:.0f} s, more than its budget "
          f"in CONTRIBUTING.md, {self._budgets.get(room, 0)} s"
        )
