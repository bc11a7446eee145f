"""When a run saves, by whose clock, and what that changes: nothing."""

import datetime
import time
import types

import jax
import pytest
from orbax.checkpoint import checkpoint_manager

from dollar_jax.train import save_times
from dollar_jax.train.config import CheckpointConfig, TrainConfig
from dollar_jax.train.save_times import SaveTimes

STEPS = 12


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test turns itself."""
  clock = types.SimpleNamespace(now=1e6)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(save_times, "time", clock)
  return clock


def drive(clock, paces, config, start=0):
  """Saves when due; returns (step, time) of each save."""
  times, saves = SaveTimes(config, start), []
  for step, pace in enumerate(paces, start + 1):
    clock.now += pace
    if times.due(step):
      saves.append((step, clock.now))
      clock.now += 5.0  # it takes a while, and is not counted
      times.saved(step)
  return saves


def test_updates_and_minutes_take_turns(clock):
  config = CheckpointConfig(every=10, minutes=1.0)
  paces = [1.0] * 10 + [20.0] * 10 + [1.0] * 20
  saves = drive(clock, paces, config)
  assert [step for step, _ in saves] == [10, 13, 16, 19, 20, 30, 40]


def test_without_minutes_time_does_not_count(clock):
  saves = drive(clock, [1e5] * 25, CheckpointConfig(every=10))
  assert [step for step, _ in saves] == [10, 20]


def test_clock_starts_anew_with_every_run(clock):
  config = CheckpointConfig(every=1000, minutes=1.0)
  saves = drive(clock, [25.0] * 7, config, start=500)
  assert [step for step, _ in saves] == [503, 506]


@pytest.mark.parametrize("pace", [0.01, 1.0, 90.0])
def test_processes_follow_the_first_and_seldom_ask_it(clock, monkeypatch, pace):
  """The second one's clock is no clock at all; still it decides the same."""
  answers = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  share = types.SimpleNamespace(
    broadcast_one_to_all=lambda value: answers.append(int(value)) or value
  )
  monkeypatch.setattr(save_times, "multihost_utils", share)
  config = CheckpointConfig(every=10**6, minutes=10.0)
  steps = 40 if pace > 60 else int(3000 / pace)
  start = clock.now
  saves = drive(clock, [pace] * steps, config)
  assert 2 <= len(saves) <= 5
  since = start
  for _, now in saves:
    assert 600 - 1e-3 <= now - since <= 600 + 2 * pace
    since = now + 5.0
  assert len(answers) <= 20 * (len(saves) + 1)

  said = iter(list(answers))
  share.broadcast_one_to_all = lambda value: next(said)
  clock.monotonic = iter(range(10**9, 0, -1)).__next__
  follower = drive(clock, [pace] * steps, config)
  assert [step for step, _ in follower] == [step for step, _ in saves]
  assert next(said, None) is None, "both must ask after the same steps"


@pytest.mark.parametrize("minutes", [-1.0, float("inf"), float("nan")])
def test_time_between_saves_that_is_none_is_refused(minutes):
  with pytest.raises(ValueError, match=r"checkpoint\.minutes is .*; it must"):
    TrainConfig(checkpoint=CheckpointConfig(minutes=minutes))


# Below: a whole run.


class _Calendar(datetime.datetime):
  """Says at every look that it is a day earlier than before."""

  days = 0

  @classmethod
  def now(cls, tz=None):
    cls.days += 1
    day = datetime.timedelta(days=cls.days)
    return datetime.datetime(2030, 1, 1, tzinfo=tz) - day


def test_more_saves_and_a_calendar_that_is_set_back_change_no_bit(
  runs, dollar, assert_same_run, monkeypatch
):
  kind = "reward"
  whole, workdir, now = runs.whole(kind), runs.fresh(), time.time()
  ticks = iter(range(10**9))

  def earlier():
    return now - 3600 * next(ticks)

  monkeypatch.setattr(time, "time", earlier)
  monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
  fake = types.SimpleNamespace(**vars(datetime))
  fake.datetime = _Calendar
  monkeypatch.setattr(checkpoint_manager, "datetime", fake)
  often = {"checkpoint__every": 5, "checkpoint__minutes": 1e-9}
  assert dollar(runs.command(kind, workdir, **often))[0] == 0
  assert _Calendar.days >= STEPS
  assert next(ticks) > STEPS
  # every step was saved, and the newest are kept, whatever their date
  saved = sorted(int(p.name) for p in workdir.glob("checkpoints/*[0-9]"))
  assert saved == [STEPS - 2, STEPS - 1, STEPS]
  assert_same_run(whole, workdir)
