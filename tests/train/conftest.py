"""Runs so small that they take seconds, each made once and shared."""

import json
import pathlib
import runpy
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dollar_jax import cli
from dollar_jax.data import moving_digits, videos
from tests import forked

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 12

SHORT = {
  "steps": STEPS,
  "log_every": 1,
  "checkpoint.every": 2,
  "data.clips": 80,
  "data.batch_size": 4,
  "optimizer.name": "adamw",  # Muon takes three times as long to compile
  "optimizer.warmup_steps": 0,
}
TEACHER = SHORT | {
  "model.num_layers": 1,
  "model.num_attention_heads": 1,
  "model.attention_head_dim": 12,
  "model.ffn_dim": 32,
  "model.freq_dim": 16,
  "model.in_channels": 8,
  "model.out_channels": 8,
  "data.channels": 8,
}
DISTILL = SHORT | {
  "score_optimizer.warmup_steps": 0,
  "distill.num_steps": 2,
  "distill.score_steps": 2,
  "distill.cd_warmup": 9,  # a run that is killed has not left it
  "distill.score_warmup": 3,
}
REWARD = DISTILL | {
  "student": "",
  "distill.cd_weight": 0.0,
  "distill.cd_warmup": 0,
  # not the size of JPEGs: on some processors one comes out a byte longer where
  # sums were made in another order, and four sizes differ by a few bytes
  "reward.name": "sharpness",
  "reward.every": 3,
  "reward.warmup_labels": 8,
  "reward.warmup_steps": 4,
  "reward.labels": 4,
  "reward.steps": 2,
  "reward.batch_size": 4,
  "reward.capacity": 16,
  "latent_reward.width": 8,
  "latent_reward.depth": 1,
  "guard.every": 6,
  "guard.samples": 4,
  "guard.watch": ("temporal_flickering",),
  "guard.features": "digits",
  "guard.frechet_rise": 1e9,
  "guard.diversity_fall": 1e9,
  "guard.reward_fall": 1e9,  # the run is to go on
  "guard.watch_fall": 1e9,
}
PIXELS = DISTILL | {
  "student": "",
  "steps": 6,
  "checkpoint.every": 6,
  "distill.cd_warmup": 0,
  "distill.pixel_weight": 1.0,
  "optimizer.learning_rate": 1e-2,
}
RECIPES = {
  "teacher": ("teacher.py", TEACHER),
  "distill": ("student.py", DISTILL),
  "lora": ("student.py", DISTILL | {"lora_rank": 2}),
  "reward": ("reward.py", REWARD),
  "pixels": ("reward_pixels.py", PIXELS),
}


CONFIG = """
from ml_collections import ConfigDict


def get_config():
  return ConfigDict({})
"""


class Runs:
  """Finished runs of each kind, and the command lines that made them."""

  def __init__(self, folder: pathlib.Path, once):
    self.folder = folder
    self._once = once
    self._count = 0

  def command(self, kind, workdir, **changes) -> list[str]:
    """Arguments of `dollar` for a run; `optimizer__ema` is optimizer.ema."""
    file, entries = RECIPES[kind]
    if kind != "teacher":
      entries = entries | {"teacher": str(self.whole("teacher") / "model")}
    entries = entries | {k.replace("__", "."): v for k, v in changes.items()}
    config = runpy.run_path(str(ROOT / "configs" / "digits" / file))
    config = config["get_config"]().to_dict()
    for name, value in entries.items():
      *groups, last = name.split(".")
      node = config
      for group in groups:
        node = node.setdefault(group, {})
      node[last] = value
    self._count += 1
    path = self.folder / f"{kind}{self._count}.py"
    path.write_text(CONFIG.format(config))
    return ["train", f"--config={path}", f"--workdir={workdir}"]

  def whole(self, kind) -> pathlib.Path:
    """The folder of the run that nothing interrupted; not to be changed."""

    def run(workdir):
      if kind != "teacher":
        self._bring_data(workdir)
      assert cli.main(self.command(kind, workdir)) == 0

    return self._once(f"{kind}-run", run)

  def fresh(self) -> pathlib.Path:
    """A new workdir, in which the embedded data is prepared already."""
    self._count += 1
    workdir = self.folder / f"fresh{self._count}"
    self._bring_data(workdir)
    return workdir

  def copy(self, kind) -> pathlib.Path:
    """A copy of a finished run without its exported model."""
    self._count += 1
    workdir = self.folder / f"copy{self._count}"
    shutil.copytree(self.whole(kind), workdir)
    shutil.rmtree(workdir / "model")
    return workdir

  def start(self, code, *args) -> forked.Program:
    """Starts `python -c CODE ARGS` below our priority, its imports done."""
    self._count += 1
    folder = self.folder / f"program{self._count}"
    folder.mkdir()
    return forked.Program(folder, textwrap.dedent(code), *args)

  def start_command(self, command) -> subprocess.Popen:
    """Starts `dollar` as a user does, below our priority."""
    return subprocess.Popen(
      ["nice", "-n", "5", sys.executable, "-m", "dollar_jax", *command],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def _bring_data(self, workdir):
    shutil.copytree(self.whole("teacher") / "data", workdir / "data")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, once):
  """The runs that tests share."""
  return Runs(tmp_path_factory.mktemp("runs"), once)


@pytest.fixture
def reward_module(tmp_path, monkeypatch):
  """Puts a module of rewards on the path; returns its name."""
  name = f"rewards_of_{tmp_path.name}"

  def put(text):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name

  yield put
  sys.modules.pop(name, None)


@pytest.fixture
def dollar(capsys):
  """Runs a command line here; returns exit code, stdout and stderr."""

  def run(args):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def refusal(dollar):
  """Runs a command line that must fail; returns its one sentence."""

  def run(args):
    code, _, err = dollar(args)
    assert code != 0
    start = f"dollar {args[0]}: error: "
    assert err.startswith(start), err
    assert err.count("\n") == 1, err
    return err[len(start) : -1]

  return run


def _read_state(workdir, step):
  folder = pathlib.Path(workdir) / "checkpoints"
  handlers = {"state": ocp.StandardCheckpointHandler()}
  with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
    saved = manager.item_metadata(step)["state"].tree
    # as numpy arrays, whatever the number of devices that saved it
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
    restored = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )
  leaves, _ = jax.tree_util.tree_flatten_with_path(restored["state"])
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


@pytest.fixture(scope="session")
def digit_clips(tmp_path_factory):
  """A folder of eight digits as videos, with their captions."""
  folder = tmp_path_factory.mktemp("sets") / "clips"
  folder.mkdir()
  made = moving_digits.make_clips("train", 8)
  rows = []
  for i, text in enumerate(made.captions):
    videos.write_video(folder / f"{i}.mp4", made.frames[i], 8)
    rows.append(json.dumps({"file_name": f"{i}.mp4", "text": text}) + "\n")
  (folder / "metadata.jsonl").write_text("".join(rows))
  return folder


@pytest.fixture(scope="session")
def read_state():
  """Reads every array of a checkpoint, by path."""
  return _read_state


@pytest.fixture(scope="session")
def assert_same_run():
  """Compares two finished runs bit by bit."""

  def check(one, two, steps=STEPS):
    mine, yours = _read_state(one, steps), _read_state(two, steps)
    assert mine.keys() == yours.keys()
    for name, array in mine.items():
      assert array.dtype == yours[name].dtype, name
      assert array.tobytes() == yours[name].tobytes(), name
    data = pathlib.Path("checkpoints", str(steps), "data")
    for folder in (data, pathlib.Path("model")):
      names = [
        p.relative_to(one) for p in (one / folder).rglob("*") if p.is_file()
      ]
      names = [name for name in names if name.name != "commit_success.txt"]
      assert names
      for name in names:
        if name.suffix == ".json" and "recipe" in name.name:
          continue  # holds the whole config
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    rows = [(w / "metrics.jsonl").read_text() for w in (one, two)]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == steps

  return check
