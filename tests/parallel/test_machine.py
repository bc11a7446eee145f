"""What a program ran on, and how fast."""

import json

import jax

from dollar_jax.parallel import machine


def test_the_usual_time_leaves_the_first_out(monkeypatch):
  clock = iter([0.0, 60.0, 100.0, 102.0, 200.0, 203.0, 300.0, 310.0])
  monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
  pace = machine.Pace()
  found = []
  for _ in range(4):
    pace.start()
    pace.stop()
    found.append(pace.median)
  assert found == [None, 2.0, 2.5, 3.0]
  pace.add(4.0)
  assert pace.median == 3.5


def test_a_machine_is_told_as_json_holds_it():
  found = json.loads(json.dumps(machine.describe()))
  assert found["jax"] == jax.__version__
  assert found["devices"] == jax.device_count()
  assert found["processes"] == 1
  assert found["memory_of"] == "process"  # a CPU counts none
  assert 10**8 < found["peak_memory_bytes"] < 10**12


def test_memory_of_a_device_that_counts_it(monkeypatch):
  class Device:
    device_kind, platform = "H100", "gpu"

    def memory_stats(self):
      return {"peak_bytes_in_use": 7}

  monkeypatch.setattr(machine.jax, "local_devices", lambda: [Device()])
  found = machine.describe()
  assert (found["peak_memory_bytes"], found["memory_of"]) == (7, "device")
  assert found["device"] == "H100 (gpu)"
