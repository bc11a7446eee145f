"""What goes wrong inside a run: NaN, misfitting data, and devices."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from dollar_jax.data import latents
from dollar_jax.train import datasets, loop, metrics
from dollar_jax.train.config import DataConfig
from dollar_jax.train.models import open_model

STEPS = 12
EXAMPLES = 8
SHAPE = (2, 4, 4, 8)


@pytest.fixture(scope="module")
def write_latents(tmp_path_factory):
  """Writes a latent set of eight videos; `bad` of them are NaN."""

  def write(bad=0, shape=SHAPE):
    folder = tmp_path_factory.mktemp("latents")
    prompts = ["a 3 moving left"] * EXAMPLES
    text, mask = datasets.digits_text_encoder().encode(prompts)
    x0 = np.random.default_rng(0).normal(size=(EXAMPLES, *shape))
    x0[:bad] = np.nan
    examples = zip(x0.astype(np.float32), text, mask, prompts, strict=True)
    rows = [latents.Example(*example) for example in examples]
    latents.write(str(folder), rows, shape, text.shape[1:])
    return folder

  return write


def test_bad_batches_are_skipped_and_the_run_goes_on(
  runs, dollar, write_latents, read_state
):
  workdir = runs.fresh()
  source = str(write_latents(bad=1))
  changes = {"data__source": source, "checkpoint__every": STEPS}
  command = runs.command("teacher", workdir, **changes)
  assert dollar(command)[0] == 0
  rows = metrics.read(workdir)
  bad = [row for row in rows if row["skipped_in_row"]]
  # one of two batches an epoch holds the bad example
  assert len(bad) == STEPS / 2
  assert all(np.isnan(row["loss"]) for row in bad)
  assert all(np.isfinite(row["loss"]) for row in rows if row not in bad)
  state = read_state(workdir, STEPS)
  assert state["['skipped']"] == len(bad)
  assert state["['updates']"] == STEPS - len(bad)
  assert all(np.isfinite(value).all() for value in state.values())


def test_ten_bad_batches_in_a_row_stop_a_teacher(runs, refusal, write_latents):
  workdir = runs.fresh()
  source = str(write_latents(bad=EXAMPLES))
  changes = {"data__source": source, "checkpoint__every": STEPS}
  command = runs.command("teacher", workdir, **changes)
  assert refusal(command).startswith(
    "the teacher's loss or gradient was not finite in 10 updates in a row, up "
    "to step 10; lower its learning rate"
  )
  assert not (workdir / "model").exists()
  assert len(metrics.read(workdir)) >= 10


def test_student_that_blew_up_is_named(runs, refusal):
  changes = {"optimizer__learning_rate": 1e30, "distill__vsd_weight": 0.0}
  sentence = refusal(runs.command("distill", runs.fresh(), **changes))
  assert sentence.startswith("the student's loss or gradient was not finite")


@pytest.mark.parametrize(
  ("metric", "network"),
  [("score", "fake score"), ("lrm", "latent reward model")],
)
def test_critic_that_blew_up_is_named(metric, network):
  name = f"{metric}_skipped_in_row"
  loop._check_finite({name: 9, "skipped_in_row": 9}, 4, "distill")
  with pytest.raises(ValueError, match=f"the {network}'s loss .* step 4; low"):
    loop._check_finite({name: 10, "skipped_in_row": 9}, 4, "distill")


def test_data_of_another_codec_is_refused(runs, refusal, write_latents):
  source = str(write_latents(shape=(2, 4, 4, 6)))
  command = runs.command("distill", runs.fresh(), data__source=source)
  assert refusal(command) == (
    f"latents in data set {source} have shape (2, 4, 4, 6), but the model "
    "takes [T, H, W, 8]; prepare the data with this model"
  )


def test_student_of_another_architecture_is_refused(runs, refusal, tmp_path):
  model = open_model(str(runs.whole("teacher")))
  wider = model.denoiser.with_config(ffn_dim=48)
  shapes = jax.eval_shape(
    lambda key: wider.init(key, SHAPE, (4, 64)), jax.random.key(0)
  )
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  bad = tmp_path / "wider"
  dataclasses.replace(model, denoiser=wider, params=params).save(bad)
  command = runs.command("distill", runs.fresh(), student=str(bad))
  assert refusal(command).startswith(f"the student in {bad} is not of the tea")


def test_adapters_start_from_adapters_only(runs, refusal):
  student = str(runs.whole("distill"))
  changes = {"lora_rank": 2, "student": student}
  message = refusal(runs.command("distill", runs.fresh(), **changes))
  assert message.startswith(f"config.student is {student}, which holds no ada")
  message = refusal(runs.command("teacher", runs.fresh(), lora_rank=2))
  assert message == "config.lora_rank is 2; it must be 0 for a teacher"


def test_data_is_made_anew_for_another_codec(runs):
  folder = str(runs.fresh() / "data")
  encoder = datasets.digits_text_encoder()
  for channels in (8, 6, 8):
    config = DataConfig(clips=80, channels=channels)
    codec = datasets.digits_codec(config)
    source = datasets.open_data(config, codec, encoder, folder)
    assert source[0]["latents"].shape[-1] == channels


TWO_DEVICES = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 2)
from dollar_jax import cli

odd, even = sys.argv[1:3], sys.argv[3:5]
assert cli.main(["train", *odd]) == 1
assert cli.main(["train", *even]) == 0
assert jax.device_count() == 2
"""


def test_two_devices_give_what_one_gives(runs, dollar):
  workdir = runs.fresh()
  odd = runs.command("distill", runs.fresh(), data__batch_size=5)
  even = runs.command("distill", workdir)
  process = runs.start(TWO_DEVICES, *odd[1:], *even[1:])
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert err == (
    "dollar train: error: batch size 5 does not divide among 2 devices; use a "
    "multiple of 2\n"
  )
  whole = runs.whole("distill")
  for mine, other in zip(*map(metrics.read, (workdir, whole)), strict=True):
    assert mine.keys() == other.keys()
    for name, value in mine.items():
      assert value == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
  file = pathlib.Path("model/transformer/diffusion_pytorch_model.safetensors")
  mine, other = (
    safetensors.numpy.load_file(w / file) for w in (workdir, whole)
  )
  for name, array in mine.items():
    np.testing.assert_allclose(array, other[name], atol=1e-5, err_msg=name)

  # and what two devices saved, one opens and goes on from
  model = open_model(str(workdir))
  (workdir / "model").rename(workdir / "elsewhere")
  unfinished = open_model(str(workdir))
  jax.tree.map(np.testing.assert_array_equal, unfinished.params, model.params)
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  assert dollar(even)[0] == 0
  resumed = open_model(str(workdir))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    resumed.params,
    model.params,
  )
