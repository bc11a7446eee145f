"""The time of files and rooms, and the budgets that CONTRIBUTING.md gives."""

import pathlib
import types

from tests.durations import Durations, read_budgets, room_of

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_every_room_has_a_budget():
  text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
  files = [p.relative_to(ROOT) for p in ROOT.glob("tests/**/test_*.py")]
  assert set(read_budgets(text)) == {room_of(str(file)) for file in files}


def test_phases_add_up_and_a_room_over_its_budget_is_told():
  durations = Durations({"train": 5, "": 9})
  for file, seconds in (
    ("tests/train/test_a.py", 2.5),
    ("tests/train/test_a.py", 0.5),
    ("tests/train/test_b.py", 4.0),
    ("tests/test_c.py", 8.0),
  ):
    report = types.SimpleNamespace(nodeid=f"{file}::test", duration=seconds)
    durations.pytest_runtest_logreport(report)
  lines = [" ".join(line.split()) for line in durations.lines()]
  assert lines == [
    "8.0 tests/test_c.py",
    "4.0 tests/train/test_b.py",
    "3.0 tests/train/test_a.py",
    "8.0 tests/, of 9",
    "7.0 tests/train, of 5",
    "15.0 in all",
    (
      "warning: tests/train took 7 s, more than its budget in CONTRIBUTING.md, "
      "5 s"
    ),
  ]
