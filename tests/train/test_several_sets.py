"""A run that draws from two sets of two shapes, and what it refuses."""

import json
import shutil

import pytest

from dollar_jax import cli
from dollar_jax.data import latents
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.train import loop


@pytest.fixture(scope="module")
def sets(digit_clips, runs):
  """Sets that one teacher prepared, of two sizes."""
  teacher = runs.whole("teacher") / "model"
  folders = []
  for size in ("8x32x32", "4x16x24"):
    out = digit_clips.parent / f"set{size}"
    command = ["prepare", f"--videos={digit_clips}", f"--model={teacher}"]
    assert cli.main([*command, f"--video_size={size}", f"--out={out}"]) == 0
    folders.append(str(out))
  return folders


def test_two_shapes_train_and_resume_bit_for_bit(
  runs, sets, assert_same_run, monkeypatch
):
  source = f"{sets[0]}=1,{sets[1]}=2"
  shapes = [latents.read(folder)[0]["latents"].shape for folder in sets]
  assert shapes[0] != shapes[1]
  one, two = runs.fresh(), runs.fresh()
  changes, seen = {"data__source": source}, set()
  # test_resume.py stops where consistency comes first
  changes |= {"distill__cd_warmup": 0, "distill__score_warmup": 0}
  draw = loop.Batches.next

  def watched(batches):
    batch, prompts = draw(batches)
    seen.add(batch["latents"].shape)
    return batch, prompts

  monkeypatch.setattr(loop.Batches, "next", watched)
  command = runs.command("distill", one, **changes)
  assert cli.main(command) == 0
  model = Pipeline.load(one / "model")
  assert model.recipe.latent_shape == shapes[0]  # that of the first
  shutil.copytree(one, two, dirs_exist_ok=True)
  shutil.rmtree(two / "model")
  for step in (10, 12):
    shutil.rmtree(two / "checkpoints" / str(step))
  assert cli.main(runs.command("distill", two, **changes)) == 0
  assert_same_run(one, two)
  assert seen == {(4, *shape) for shape in shapes}


def test_a_reward_takes_one_shape(runs, sets, refusal):
  command = runs.command("reward", runs.fresh(), data__source=",".join(sets))
  sentence = refusal(command)
  assert sentence.startswith("the data sets have latents of several shapes (")
  assert f"{sets[1]} (1, 2, 3, 8)" in sentence
  assert "a run with reward_weight takes one" in sentence


def test_the_embedded_set_is_not_mixed(runs, sets, refusal):
  command = runs.command(
    "distill", runs.fresh(), data__source=f"{sets[0]},moving_digits"
  )
  assert "mixes moving_digits with folders; give it alone" in refusal(command)


def test_each_set_is_checked(runs, sets, refusal, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(sets[0], other)
  file = other / "metadata.json"
  made = json.loads(file.read_text())
  made["codec"]["fingerprint"] = "0" * 16
  file.write_text(json.dumps(made))
  command = runs.command(
    "distill", runs.fresh(), data__source=f"{sets[0]},{other}"
  )
  assert refusal(command).startswith(
    f"data set {other} was prepared with codec LinearVAE (00000000)"
  )
