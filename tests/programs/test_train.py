"""`dollar train`: everything a user can get wrong, in one sentence each."""

import os
import pathlib

import pytest

from dollar_jax import cli
from dollar_jax.train.config import TrainConfig, from_config_dict, to_dict

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEACHER = ROOT / "configs" / "digits" / "teacher.py"
STUDENT = ROOT / "configs" / "digits" / "student.py"
REWARD = ROOT / "configs" / "digits" / "reward.py"


@pytest.fixture
def refusal(tmp_path, capsys):
  """Runs a training that must fail at once; returns its one sentence."""

  def run(*args, workdir=tmp_path / "run"):
    assert cli.main(["train", *map(str, args), f"--workdir={workdir}"]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    start = "dollar train: error: "
    assert err.startswith(start), err
    assert err.count("\n") == 1, err
    return err[len(start) : -1]

  return run


@pytest.mark.parametrize(
  ("entry", "sentence"),
  [
    ("stepps=3", "config has no entry 'stepps', did you mean steps?"),
    ("model.layers=3", "config.model has no entry 'layers'"),
    ("steps=many", "--config.steps takes an integer, not 'many'"),
    ("optimizer.learning_rate=x", "takes a number, not 'x'"),
    ("scan=perhaps", "--config.scan takes true or false, not 'perhaps'"),
    (
      "model.patch_size=(1, 2)",
      "config.model.patch_size is (1, 2); it must be",
    ),
    ("steps=0", "config.steps is 0; it must be at least 1"),
    ("seed=-1", "config.seed is -1; it must be 0 to"),
    ("log_every=0", "config.log_every is 0; it must be at least 1"),
    ("task=nothing", "config.task is 'nothing'; it must be one of"),
    ("checkpoint.every=0", "config.checkpoint.every is 0; it must be"),
    ("data.batch_size=0", "config.data.batch_size is 0; it must be"),
    ("data.clips=0", "number of clips is 0; it must be at least 1"),
    ("data.clips=50", "holds 50 videos, fewer than one batch of 64"),
    ("data.channels=9999", "latent channels is 9999; patches"),
    ("data.channels=16", "model.in_channels is 32, but the latents have 16"),
    ("data.source=/nowhere", "/nowhere holds no prepared latents"),
    ("optimizer.name=sgd", "optimizer is 'sgd'; use 'adamw' or 'muon'"),
    ("optimizer.schedule=steps", "schedule is 'steps'; use one of"),
    ("optimizer.warmup_steps=9999", "warmup_steps is 9999; it must lie"),
    ("optimizer.learning_rate=-1", "config.optimizer.learning_rate is -1.0;"),
    ("model.attention_head_dim=7", "attention_head_dim is 7; rotary"),
    ("model.patch_size=(1, 3, 3)", "3"),
  ],
)
def test_teacher_config(refusal, entry, sentence):
  flags = ["--config.data.clips=80"] if "clips" not in entry else []
  assert sentence in refusal(f"--config={TEACHER}", *flags, f"--config.{entry}")


@pytest.mark.parametrize(
  ("entry", "sentence"),
  [
    ("teacher=/nowhere", "/nowhere is not a folder"),
    ("teacher=", "config.teacher is ''; it must be a model folder, a run, or"),
    ("data.source=", "config.data.source is ''; it must be a folder of"),
    ("distill.num_steps=0", "config.distill.num_steps is 0; it must be"),
    ("distill.inputs=noise", "config.distill.inputs is 'noise'; it must be"),
    ("distill.cd_jump=99", "config.distill.cd_jump is 99; it must be 1 to 50"),
    ("distill.vsd_weight=-1", "config.distill.vsd_weight is -1.0; it must be"),
    ("distill.score_steps=0", "config.distill.score_steps is 0; it must be"),
    ("score_optimizer.learning_rate=-1", "config.score_optimizer.learning_rat"),
  ],
)
def test_student_config(refusal, entry, sentence):
  assert sentence in refusal(f"--config={STUDENT}", f"--config.{entry}")


@pytest.mark.parametrize("entry", ["every", "labels", "steps", "max_failures"])
def test_reward_config(refusal, entry, tmp_path):
  config = tmp_path / "reward.py"
  config.write_text(
    "import runpy\n\n\ndef get_config():\n"
    f"  config = runpy.run_path({str(REWARD)!r})['get_config']()\n"
    f"  config.reward.{entry} = 0\n"
    "  return config\n"
  )
  assert f"config.reward.{entry} is 0; it must be" in refusal(
    f"--config={config}"
  )


def test_no_config(refusal):
  assert refusal() == ("no --config given; name one, e.g. a file in configs/")


@pytest.mark.parametrize("workdir", ["/dev/null/x", "/proc/run"])
def test_workdir_that_cannot_be_written(refusal, workdir):
  sentence = refusal(f"--config={TEACHER}", workdir=workdir)
  assert workdir in sentence
  reasons = "Not a directory", "No such file or directory"
  remedy = "; make it writable, or use another"
  assert sentence.endswith(tuple(f" ({reason}){remedy}" for reason in reasons))


def test_workdir_on_a_read_only_disk(refusal, tmp_path, monkeypatch):
  # root writes to any folder, so the file system is asked to refuse
  def refuse(path, *args, **kwargs):
    raise OSError(30, os.strerror(30), str(path))

  monkeypatch.setattr(os, "mkdir", refuse)
  monkeypatch.setattr(os, "makedirs", refuse)
  sentence = refusal(f"--config={TEACHER}", "--config.data.clips=80")
  remedy = "make it writable, or use another"
  assert sentence.endswith(f" (Read-only file system); {remedy}")


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    ({"rate": 1}, "config has no entry 'rate'; it has task, steps, "),
    ({"model": {"heads": 1}}, "config.model has no entry 'heads'; it has"),
    ({"dtype": "float16"}, "config.dtype is 'float16'; it must be one of"),
    ({"optimizer": {"ema": 1.0}}, "config.optimizer.ema is 1.0; it must be"),
    ({"steps": 1.5}, "config.steps is 1.5; it must be of type int"),
    ({"steps": True}, "config.steps is True; it must be of type int"),
    ({"scan": 1}, "config.scan is 1; it must be of type bool"),
    ({"model": 3}, "config.model is 3; it must be a group of entries"),
    ({"distill": {"grid": 4}}, "config.distill.grid is 4; it must be of type"),
    ({"distill": {"grid": ["a"]}}, "config.distill.grid is 'a'; it must be"),
    ({"data": {"batch_size": 6}, "optimizer": {"accumulate": 4}}, "multiple"),
    ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate is nan"),
  ],
)
def test_config_from_python(values, sentence):
  with pytest.raises(ValueError) as error:
    from_config_dict(values)
  assert sentence in str(error.value)
  assert "\n" not in str(error.value)


def test_config_comes_back_from_its_file():
  values = {
    "task": "distill",
    "steps": 7,
    "shift": 2,
    "model": {"patch_size": [1, 1, 1]},
    "distill": {"grid": [1, 0.5]},
  }
  config = from_config_dict(values)
  assert config.distill.grid == (1.0, 0.5)
  assert type(config.shift) is float
  assert from_config_dict(to_dict(config)) == config
  assert from_config_dict(to_dict(TrainConfig())) == TrainConfig()


@pytest.mark.parametrize(
  "name",
  [
    "wan/distill.py:t2v_1_3b",
    "wan/distill.py:t2v_14b",
    "wan/distill.py:ti2v_5b",
    "wan/distill.py:t2v_a14b",
    "cogvideox/distill.py",
  ],
)
def test_configs_of_real_sizes_ask_for_their_teacher(
  refusal, name, monkeypatch, tmp_path
):
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
  config = f"--config={ROOT}/configs/{name}"
  assert "is not a folder" in refusal(config)
  teacher = "--config.teacher=/nowhere"
  assert "/nowhere is not a folder" in refusal(config, teacher)


def test_a_size_that_is_none_is_named(refusal):
  message = refusal(f"--config={ROOT}/configs/wan/distill.py:t2v_13b")
  assert "'t2v_13b' is unknown; use one of ['t2v_14b'" in message
