"""Checkpoints: what is saved, and what happens when they are damaged."""

import json
import shutil
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.train import metrics
from dollar_jax.train.checkpoint import Checkpointer, read_networks
from dollar_jax.train.config import CheckpointConfig
from dollar_jax.train.models import open_model

STEPS = 12
RUN = {"task": "teacher", "model": {"layers": 2}}

CHECKSUMS = """
import json
import jax

jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dollar_jax.parallel.hlo import collectives
from dollar_jax.train import checkpoint

draw = np.random.default_rng(0)
state = {
  "words": draw.integers(2**32, size=(8, 16), dtype=np.uint32),
  "weights": draw.standard_normal((8, 16), np.float32),
  "halves": draw.standard_normal((16, 8)).astype("bfloat16"),
  "mask": draw.random((8, 8)) < 0.5,
}
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
words = [np.frombuffer(x, f"uint{8 * x.itemsize}") for x in state.values()]
total = sum(int(x.sum(dtype=np.uint64)) for x in words)
found = {"truth": total % 2**32, "host": checkpoint._checksum(state)}
one = jax.device_put(state, jax.devices()[3])
found["one device"] = checkpoint._checksum(one)
for spec in (P(), P("fsdp"), P(None, "data"), P(("data", "fsdp"))):
  spread = jax.device_put(state, NamedSharding(mesh, spec))
  found[str(spec)] = checkpoint._checksum(spread)
  for array in spread.values():
    program = checkpoint._sum_parts.lower(array, array.sharding).compile()
    assert not collectives(program.as_text()), spec
assert jax.device_count() == 8
print(json.dumps(found))
"""


def _data():
  data = grain.MapDataset.range(100).seed(0).shuffle().repeat()
  return iter(data.to_iter_dataset())


def _state(step):
  key = jax.random.key(step)
  network = {
    "params": {"kernel": jax.random.normal(key, (40, 30))},
    "ema": None,
    "updates": jnp.int32(step),
    "moment": jnp.full((3,), step, jnp.bfloat16),
  }
  labels = {"counts": np.array([2**40, step]), "mask": np.array([True, False])}
  return {"networks": network, "labels": labels}


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
  folder, data = tmp_path_factory.mktemp("saved"), _data()
  checkpointer = Checkpointer(folder, CheckpointConfig(keep=3), RUN)
  for step in (1, 2, 3, 4):
    next(data)
    checkpointer.save(step, _state(step), data)
  checkpointer.wait()
  checkpointer.close()
  return folder


@pytest.fixture
def saved(saved_once, tmp_path):
  """A folder with checkpoints of steps 2, 3 and 4; 1 was let go."""
  return shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def restore(saved):
  """Restores what is there; returns (step, state) and the next example."""

  def run(description=RUN, state=None):
    data = _data()
    checkpointer = Checkpointer(saved, CheckpointConfig(keep=3), description)
    try:
      found = checkpointer.restore(state or _state(0), data)
    finally:
      checkpointer.close()
    return found, next(data)

  return run


def _steps(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*[0-9]"))


def test_newest_comes_back_whole(saved, restore):
  assert _steps(saved) == [2, 3, 4]
  (step, state), example = restore()
  assert step == 4
  jax.tree.map(np.testing.assert_array_equal, state, _state(4))
  assert state["labels"]["counts"].dtype == np.int64
  data = _data()
  examples = [next(data) for _ in range(5)]
  assert example == examples[4]


def test_empty_folder_is_a_fresh_start(tmp_path):
  checkpointer = Checkpointer(tmp_path, CheckpointConfig(), RUN)
  assert checkpointer.restore(_state(0), _data()) is None
  checkpointer.close()


def test_a_checksum_is_of_the_words_wherever_they_are_and_sends_nothing(runs):
  """Many programs that exchange something at once may hang on a CPU."""
  process = runs.start(CHECKSUMS)
  out, err = process.communicate()
  assert process.returncode == 0, err
  found = json.loads(out)
  assert len(found) == 7
  assert set(found.values()) == {found["truth"]}, found


def _files(saved, step, pattern):
  folder = saved / "checkpoints" / str(step)
  return [path for path in folder.glob(pattern) if path.is_file()]


def _truncate(paths):
  for path in paths:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(paths):
  largest = max(paths, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 4
  largest.write_bytes(content)


def _delete(paths):
  for path in paths:
    path.unlink()


def _delete_folder(paths):
  shutil.rmtree(paths[0].parent)


DAMAGES = {
  "arrays cut": (_truncate, "state/**/d/*"),
  "one bit of an array": (_flip, "state/**/d/*"),
  "array list cut": (_truncate, "state/_METADATA"),
  "iterator gone": (_delete, "data/*"),
  "description gone": (_delete, "description/*"),
  "everything empty": (_delete, "**/*"),
  "arrays gone": (_delete, "state/ocdbt.process_0/d/*"),
  "array index gone": (_delete, "state/manifest.ocdbt"),
  "state gone with its folder": (_delete_folder, "state/_METADATA"),
  "iterator gone with its folder": (_delete_folder, "data/metadata"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_and_says_so(
  saved, restore, damage, caplog, capfd
):
  harm, pattern = DAMAGES[damage]
  harm(_files(saved, 4, pattern))
  (step, state), example = restore()
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, state, _state(3))
  assert example == [n for n, _ in zip(_data(), range(4), strict=False)][3]
  [warning] = caplog.messages
  assert f"{saved / 'checkpoints' / '4'} cannot be read" in warning
  assert "of step 3" in warning
  assert _steps(saved) == [2, 3], "step 4 must be free to be saved again"
  assert "Traceback" not in capfd.readouterr().err


def test_networks_are_read_past_a_damaged_checkpoint(saved, caplog):
  _flip(_files(saved, 4, "state/**/d/*"))
  networks = read_networks(saved)
  np.testing.assert_array_equal(
    networks["params"]["kernel"], _state(3)["networks"]["params"]["kernel"]
  )
  assert networks["ema"] is None
  assert "cannot be read (its checksum is wrong)" in caplog.text
  assert _steps(saved) == [2, 3, 4], "a reader deletes nothing"


def test_all_damaged_is_one_sentence(saved, restore):
  for step in _steps(saved):
    _truncate(_files(saved, step, "state/**/d/*"))
  with pytest.raises(ValueError, match=r"none of .*\[2, 3, 4\].* another wor"):
    restore()
  with pytest.raises(ValueError, match=r"none of the checkpoints \[2, 3, 4\]"):
    read_networks(saved)
  assert _steps(saved) == [2, 3, 4]


def test_a_run_never_starts_anew_beside_ruins(saved, restore):
  """The only checkpoint has lost its files, or all but a folder of it."""
  for step in (2, 3):
    shutil.rmtree(saved / "checkpoints" / str(step))
  for item in ("state", "data", "description"):
    shutil.rmtree(saved / "checkpoints" / "4" / item)
    with pytest.raises(ValueError, match=r"\[4\] in .* delete the folder"):
      restore()
  _delete(_files(saved, 4, "*"))
  with pytest.raises(ValueError, match=r"\[4\] in .* delete the folder"):
    restore()


def test_another_run_is_told_from_a_damaged_one(saved, restore, caplog):
  with pytest.raises(ValueError, match=r"model\.layers was 2, is 3;.* workdir"):
    restore({"task": "teacher", "model": {"layers": 3}})
  with pytest.raises(ValueError, match=r"grid was None, is \[1\.0\]"):
    restore(RUN | {"grid": [1.0]})
  assert caplog.messages == []
  assert _steps(saved) == [2, 3, 4]


def test_half_written_checkpoint_is_cleared_away(saved, restore):
  folder = saved / "checkpoints"
  shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")
  assert restore()[0][0] == 4
  assert sorted(p.name for p in folder.iterdir()) == ["2", "3", "4"]


# Below: whole runs.


def test_run_goes_on_from_the_checkpoint_before(
  runs, dollar, caplog, assert_same_run
):
  workdir = runs.copy("teacher")
  _truncate(_files(workdir, STEPS, "state/**/d/*"))
  code, _, err = dollar(runs.command("teacher", workdir))
  assert (code, err) == (0, "")
  assert f"checkpoints/{STEPS} cannot be read" in caplog.text
  assert_same_run(workdir, runs.whole("teacher"))


def test_run_without_a_readable_checkpoint_stops(runs, refusal):
  workdir = runs.copy("teacher")
  for step in _steps(workdir):
    _truncate(_files(workdir, step, "state/**/d/*"))
  sentence = refusal(runs.command("teacher", workdir))
  assert sentence.startswith("none of the checkpoints [8, 10, 12] in ")


@pytest.mark.parametrize(
  ("kind", "of", "changes", "difference"),
  [
    ("teacher", "teacher", {"model__ffn_dim": 48}, "model.ffn_dim was 32, is"),
    (
      "teacher",
      "teacher",
      {"optimizer__name": "muon"},
      "optimizer.name was 'adamw', is 'muon'",
    ),
    ("distill", "teacher", {}, "task was 'teacher', is 'distill'"),
    (
      "distill",
      "distill",
      {"distill__grid": (1.0, 0.25)},
      "], is [1.0, 0.25]; use",
    ),
  ],
)
def test_checkpoint_of_another_run_is_refused(
  runs, refusal, tmp_path, kind, of, changes, difference
):
  workdir = shutil.copytree(runs.whole(of), tmp_path / "run")
  before = (workdir / "config.json").read_text()
  sentence = refusal(runs.command(kind, workdir, **changes))
  assert f"checkpoints/{STEPS} is of another run: " in sentence
  assert difference in sentence
  assert (workdir / "config.json").read_text() == before


def test_unfinished_run_can_be_opened(runs, read_state):
  for kind, part in (
    ("teacher", ""),
    ("distill", "['networks']['student']"),
  ):
    workdir = runs.copy(kind)
    model = open_model(str(workdir))
    whole = open_model(str(runs.whole(kind)))
    assert model.recipe == whole.recipe
    assert model.denoiser.config == whole.denoiser.config
    jax.tree.map(np.testing.assert_array_equal, model.params, whole.params)
    bias = read_state(workdir, STEPS)[f"{part}['ema']['proj_out']['bias']"]
    np.testing.assert_array_equal(model.params["proj_out"]["bias"], bias)


FULL_DISK = """
import pathlib, resource, sys, time
from dollar_jax import cli
from dollar_jax.train import metrics

workdir = pathlib.Path(sys.argv.pop())
write = metrics.MetricsLog.write


def fill_disk_after_row_five(self, step, values):
  write(self, step, values)
  if step == 5:
    while not (workdir / "checkpoints" / "4").is_dir():
      time.sleep(0.01)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, hard))


metrics.MetricsLog.write = fill_disk_after_row_five
sys.exit(cli.main(sys.argv[1:]))
"""


def test_full_disk_leaves_the_last_checkpoint(runs, dollar, assert_same_run):
  workdir = runs.fresh()
  command = runs.command("teacher", workdir)
  process = runs.start(FULL_DISK, *command, str(workdir))
  _, err = process.communicate()
  assert process.returncode == 1, err
  assert err.count("\n") == 1, err
  assert err.startswith("dollar train: error: a checkpoint could not be wri")
  assert "File too large" in err
  assert "that of step 4 is whole: make room" in err
  assert _steps(workdir) == [2, 4]

  code, _, err = dollar(command)
  assert (code, err) == (0, "")
  assert_same_run(workdir, runs.whole("teacher"))


# The log of metrics beside them.


def _write_rows(workdir, steps):
  log = metrics.MetricsLog(workdir, 0)
  for step in steps:
    log.write(step, {"loss": jnp.float32(step) / 2, "spearman": np.nan})
  log.close()


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
  _write_rows(tmp_path, range(1, 7))
  log = metrics.MetricsLog(tmp_path, 4)
  log.write(5, {"loss": 9.0})
  log.close()
  rows = metrics.read(tmp_path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  assert [row["loss"] for row in rows] == [0.5, 1.0, 1.5, 2.0, 9.0]


def test_torn_last_line_is_survived(tmp_path):
  _write_rows(tmp_path, range(1, 4))
  file = tmp_path / "metrics.jsonl"
  file.write_text(file.read_text()[:-9])
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
  log = metrics.MetricsLog(tmp_path, 3)
  log.write(4, {"loss": 1.0})
  log.close()
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 4]


def test_log_is_json_that_others_read(tmp_path):
  _write_rows(tmp_path, [1])
  [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()

  def refuse(name):
    raise AssertionError(f"{name} is no JSON")

  row = json.loads(line, parse_constant=refuse)
  assert row == {"step": 1, "loss": 0.5, "spearman": None}
  assert np.isnan(metrics.read(tmp_path)[0]["spearman"])


def test_tensorboard_without_its_package_is_one_sentence(
  runs, refusal, monkeypatch
):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  for name in [n for n in sys.modules if n.startswith("clu.metric_writers")]:
    monkeypatch.delitem(sys.modules, name)
  command = runs.command("teacher", runs.copy("teacher"), tensorboard=True)
  assert "tensorflow is not installed; run `pip" in refusal(command)
