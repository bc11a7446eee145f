"""Sets that `dollar prepare` made are trained on, or refused by name."""

import json

import jax
import pytest

from dollar_jax import cli
from dollar_jax.data import latents, moving_digits
from dollar_jax.interop import parts
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.train import datasets


@pytest.fixture(scope="module")
def linear(digit_clips):
  """A set with a codec and a text encoder of its own."""
  out = digit_clips.parent / "linear"
  command = [
    "prepare",
    f"--videos={digit_clips}",
    f"--out={out}",
    "--codec=linear",
  ]
  size = ["--fit", "--channels=8", "--video_size=4x16x16"]
  assert cli.main([*command, *size]) == 0
  return out


def test_a_teacher_takes_codec_and_text_encoder_from_its_data(
  runs, linear, tmp_path
):
  workdir = tmp_path / "run"
  command = runs.command("teacher", workdir, data__source=str(linear), steps=1)
  assert cli.main(command) == 0
  model = Pipeline.load(workdir / "model")
  codec, encoder = parts.load_parts(linear)
  assert parts.identity(model.codec) == parts.identity(codec)
  assert parts.identity(model.text_encoder) == parts.identity(encoder)
  assert model.recipe.latent_shape == (1, 2, 2, 8)
  frames = model.generate(["a 0 moving left"])
  assert frames.shape == (1, 4, 16, 16, 3)


def test_data_of_another_codec_is_refused_by_name(runs, refusal, linear):
  command = runs.command("distill", runs.fresh(), data__source=str(linear))
  sentence = refusal(command)
  made = json.loads((linear / "metadata.json").read_text())["codec"]
  teacher = Pipeline.load(runs.whole("teacher") / "model")
  mine = parts.identity(teacher.codec)
  assert made["fingerprint"] != mine["fingerprint"]
  assert sentence == (
    f"data set {linear} was prepared with codec LinearVAE "
    f"({made['fingerprint'][:8]}), but the model has LinearVAE "
    f"({mine['fingerprint'][:8]}); prepare the data with this model"
  )


def test_data_of_another_text_encoder_is_refused_by_name():
  other = {"name": "T5EncoderModel", "fingerprint": "0" * 16}
  encoder = Pipeline.load("embedded").text_encoder
  mine = {"codec": None, "text_encoder": encoder}
  with pytest.raises(ValueError, match=r"with text encoder T5EncoderModel \(0"):
    parts.check_made_with("D", {"text_encoder": other}, mine)
  parts.check_made_with("D", {"text_encoder": parts.identity(encoder)}, mine)
  parts.check_made_with("D", {}, mine)


@pytest.fixture(scope="module")
def prompts(digit_clips):
  """A file of four prompts."""
  file = digit_clips.parent / "prompts.txt"
  file.write_text("\n".join(moving_digits.all_captions()[:4]))
  return file


def prepare(out, teacher, *flags):
  command = ["prepare", f"--out={out}", f"--model={teacher}", *flags]
  assert cli.main(command) == 0
  return str(out)


def test_what_a_teacher_prepared_fits_it(
  runs, refusal, digit_clips, prompts, tmp_path
):
  teacher = runs.whole("teacher") / "model"
  out = prepare(
    tmp_path / "videos", teacher, f"--videos={digit_clips}", "--dtype=bfloat16"
  )
  model = Pipeline.load(teacher)
  datasets.check_made_for(out, model.codec, model.text_encoder)
  shape = latents.read(out)[0]["latents"].shape
  assert shape == model.recipe.latent_shape

  out = prepare(tmp_path / "prompts", teacher, f"--prompts={prompts}")
  command = runs.command("distill", tmp_path / "no", data__source=out)
  assert refusal(command) == (
    f"data set {out} has prompts and no latents, but config.distill."
    "cd_weight=0.5 needs them; prepare it with --synthesize, or from videos"
  )
  command = runs.command("teacher", tmp_path / "no", data__source=out)
  assert "config.task='teacher' needs them" in refusal(command)


@pytest.mark.slow  # compiles a distillation of its own
def test_prompts_suffice_for_vsd(runs, prompts, tmp_path):
  teacher = runs.whole("teacher") / "model"
  out = prepare(tmp_path / "prompts", teacher, f"--prompts={prompts}")
  changes = {"steps": 1, "data__source": out}
  for name in ("cd_weight", "cd_warmup", "score_warmup"):
    changes[f"distill__{name}"] = 0
  workdir = tmp_path / "vsd"
  assert cli.main(runs.command("distill", workdir, **changes)) == 0
  result, model = Pipeline.load(workdir / "model"), Pipeline.load(teacher)
  assert result.recipe.latent_shape == model.recipe.latent_shape
  pairs = zip(
    jax.tree.leaves(result.params), jax.tree.leaves(model.params), strict=True
  )
  assert any((a != b).any() for a, b in pairs)
