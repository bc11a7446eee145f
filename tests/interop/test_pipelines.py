"""Whole samplers against whole pipelines of diffusers, on the same weights.

Each model is written by `interop.save`, opened by
`DiffusionPipeline.from_pretrained`, and sampled by both from the same noise.
"""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.diffusion.timesteps import student_grid, teacher_grid
from dollar_jax.interop import diffusers as ours
from dollar_jax.interop import keymaps
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.interop.schedulers import student_scheduler_to_json
from dollar_jax.models.denoiser import EXPERTS
from dollar_jax.train import datasets
from dollar_jax.train.checkpoint import read_networks as networks
from dollar_jax.train.config import DataConfig
from tests.tiny import COGVIDEOX, WAN, WORDS, cogvideox, random_params, wan

try:
  import diffusers
  import torch

  from benchmarks import in_diffusers
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = in_diffusers = None

pytestmark = pytest.mark.torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEACHER = Recipe(latent_shape=(3, 4, 6, 4), steps=50, guidance=3.0)
"""How it is sampled."""


def exported(denoiser, folder, recipe):
  """The model as ours, and as the pipeline that opens its folder."""
  tree = random_params(denoiser, scale=0.3)
  if denoiser.boundary is not None:
    other = jax.tree.map(lambda x: -x, tree)
    tree = dict(zip(EXPERTS, (tree, other), strict=True))
  Pipeline(denoiser, tree, None, None, recipe).save(folder)
  theirs = in_diffusers.open_pipeline(folder)
  return Pipeline.load(folder), theirs


def inputs(model):
  rng = np.random.default_rng(2)
  recipe, config = model.recipe, model.denoiser.config
  width = config.text_dim
  count = max(len(recipe.grid), 1)
  noises = rng.standard_normal((count, 2, *recipe.latent_shape))
  words = getattr(config, "max_text_seq_length", WORDS)
  text = rng.standard_normal((2, words, width))
  null = rng.standard_normal((words, width))
  return tuple(a.astype(np.float32) for a in (noises, text, null))


def sample_both(model, theirs):
  noises, text, null = inputs(model)
  mask = np.ones(text.shape[:2], bool)
  null_prompt = {"null_text": null, "null_mask": mask[0]}
  mine = model.sample_latents(text, mask, noises, null_prompt)

  out = in_diffusers.sample(theirs, model.recipe, noises, text, null)
  return np.asarray(mine), out


def test_the_guided_teacher_of_wan(tmp_path):
  model, theirs = exported(wan(), tmp_path / "m", TEACHER)
  assert isinstance(theirs, diffusers.WanPipeline)
  assert theirs.scheduler.config.shift == 3.0
  # by default it ends at another time; these are our 50 times in its words
  grid = teacher_grid(50, 3.0)[:-1]
  even = student_scheduler_to_json(model.denoiser, grid, 0.0)
  theirs.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
    shift=even["shift"], shift_terminal=even["shift_terminal"]
  )
  mine, wanted = sample_both(model, theirs)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-3)


def test_two_experts_of_wan(tmp_path):
  denoiser = wan(boundary=0.875)
  recipe = TEACHER.as_student(student_grid(4, 5.0))  # two steps each
  recipe = dataclasses.replace(recipe, guidance=3.0)
  model, theirs = exported(denoiser, tmp_path / "m", recipe)
  assert model.denoiser.boundary == theirs.config.boundary_ratio == 0.875
  mine, wanted = sample_both(model, theirs)
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)
  # and it is not the first of them alone
  params = {**model.params, "transformer_2": model.params["transformer"]}
  alone, _ = sample_both(model.with_params(params, recipe), theirs)
  assert np.abs(alone - wanted).max() > 0.1


def test_the_guided_teacher_of_cogvideox(tmp_path):
  model, theirs = exported(cogvideox(), tmp_path / "m", TEACHER)
  assert isinstance(theirs.scheduler, diffusers.CogVideoXDDIMScheduler)
  mine, wanted = sample_both(model, theirs)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
  "steps, fresh", [(1, 1.0), (2, 1.0), (4, 1.0), (4, 0.0)]
)
def test_few_step_students_of_wan(tmp_path, steps, fresh):
  grid = student_grid(steps, 5.0)  # its own shift, not the teacher's
  recipe = dataclasses.replace(TEACHER.as_student(grid), fresh_noise=fresh)
  model, theirs = exported(wan(), tmp_path / "m", recipe)
  assert model.denoiser.shift == 3.0
  assert model.recipe.grid == pytest.approx(grid)
  assert ("LCM" in type(theirs.scheduler).__name__) == (fresh == 1.0)
  mine, wanted = sample_both(model, theirs)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  "steps, snr_shift_scale", [(1, 3.0), (2, 1.0), (4, 3.0)]
)
def test_few_step_students_of_cogvideox(tmp_path, steps, snr_shift_scale):
  recipe = TEACHER.as_student(student_grid(steps))
  denoiser = cogvideox(snr_shift_scale=snr_shift_scale)
  model, theirs = exported(denoiser, tmp_path / "m", recipe)
  assert model.denoiser.process == denoiser.process
  assert isinstance(theirs.scheduler, diffusers.LCMScheduler)
  mine, wanted = sample_both(model, theirs)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)


TINY_DIGITS = {"in_channels": 8, "out_channels": 8, "num_layers": 1}
DIGITS = {
  "wan": dataclasses.replace(WAN, **TINY_DIGITS, text_dim=64),
  "cogvideox": dataclasses.replace(
    COGVIDEOX, **TINY_DIGITS, text_embed_dim=64, max_text_seq_length=4
  ),
}


def write_teacher(kind, folder):
  """A pipeline as diffusers writes it, with our codec and words beside it."""
  torch.manual_seed(0)
  if kind == "wan":
    form = keymaps.TRANSFORMERS["WanTransformer3DModel"]
    network = diffusers.WanTransformer3DModel(**form.to_json(DIGITS[kind]))
    scheduler = diffusers.UniPCMultistepScheduler(
      prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = diffusers.WanPipeline(None, None, None, scheduler, network)
  else:
    form = keymaps.TRANSFORMERS["CogVideoXTransformer3DModel"]
    network = diffusers.CogVideoXTransformer3DModel(
      **form.to_json(DIGITS[kind])
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
      prediction_type="v_prediction",
      rescale_betas_zero_snr=True,
      snr_shift_scale=1.0,
      timestep_spacing="trailing",
    )
    pipeline = diffusers.CogVideoXPipeline(None, None, None, network, scheduler)
  with torch.no_grad():
    for weight in network.parameters():  # no norm or table is trivial
      weight.add_(0.1 * torch.randn(weight.shape))
  pipeline.save_pretrained(folder)
  codec = datasets.digits_codec(DataConfig(clips=80, channels=8))
  words = datasets.digits_text_encoder()
  parts = folder.with_name("parts")
  denoiser, params = ours.load(folder)
  ours.save(parts, denoiser, params, codec, words)
  for part in ("vae", "text_encoder"):
    shutil.copytree(parts / part, folder / part)


@pytest.mark.parametrize(
  "kind, config, rank",
  [
    ("wan", "wan/distill.py:t2v_1_3b", 2),
    ("cogvideox", "cogvideox/distill.py", 0),
  ],
)
def test_a_teacher_of_diffusers_is_distilled_and_goes_back(
  tmp_path, kind, config, rank
):
  teacher, run = tmp_path / "teacher", tmp_path / "run"
  write_teacher(kind, teacher)
  changes = {
    "teacher": teacher,
    "steps": 2,
    "lora_rank": rank,
    "dtype": "float32",
    "frozen_dtype": "float32",
    "remat": "none",
    "data.source": "moving_digits",
    "data.clips": 80,
    "data.batch_size": 4,
    "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 0.01,
    "optimizer.ema": 0.5,
    "score_optimizer.warmup_steps": 0,
    "distill.num_steps": 2,
    "distill.score_steps": 1,
  }
  flags = [f"--config.{name}={value}" for name, value in changes.items()]
  line = ["train", f"--config={ROOT}/configs/{config}", f"--workdir={run}"]
  assert cli.main([*line, *flags]) == 0

  model = Pipeline.load(run / "model")
  assert model.recipe.latent_shape == (2, 4, 4, 8)
  assert model.recipe.steps == 2
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    model.params,
    Pipeline.load(teacher).params,
  )
  assert max(jax.tree.leaves(moved)) > 1e-3
  theirs = in_diffusers.open_pipeline(run / "model")
  mine, wanted = sample_both(model, theirs)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)
  if rank:  # the teacher with what was learnt is the student
    theirs.transformer = type(theirs.transformer).from_pretrained(
      teacher / "transformer"
    )
    before = sample_both(model, theirs)[1]
    theirs.load_lora_weights(run / "model")
    mine, adapted = sample_both(model, theirs)
    np.testing.assert_allclose(mine, adapted, rtol=0, atol=1e-4)
    assert np.abs(before - adapted).max() > 0.01
    state = networks(run)
    student, scale = state["student"]["params"], model.denoiser.config
    assert student["blocks"]["ffn"]["up"]["b"].shape == (1, 2, scale.ffn_dim)
    assert len(jax.tree.leaves(student)) == 20
