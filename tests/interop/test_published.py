"""`interop.published`: what the open models are, and how they are sampled."""

import dataclasses
import pathlib

import pytest
from flax import traverse_util

from benchmarks import model_sizes
from dollar_jax.interop.keymaps import TRANSFORMERS
from dollar_jax.interop.networks import template
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.interop.published import PUBLISHED, published_recipe
from dollar_jax.interop.recipe import Recipe

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_and_shape_is_that_of_diffusers(name):
  config = PUBLISHED[name]
  kind = next(a for a in TRANSFORMERS.values() if a.config is type(config))
  with torch.device("meta"):
    model = getattr(diffusers, kind.name)(**kind.to_json(config))
  theirs = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  leaves = traverse_util.flatten_dict(template(kind.module(config)))
  keymap = kind.keymap(config)
  assert set(keymap.by_path()) == set(leaves)
  ours = {e.torch: e.torch_shape(leaves[e.path].shape) for e in keymap.entries}
  assert ours == theirs


def test_the_table_in_the_docs_is_what_the_command_prints():
  table = "\n".join(model_sizes.table())
  assert table in (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize(
  "name, shape, fps, guidance",
  [
    # the defaults of WanPipeline: 81 frames of 480x832, coded 4x8x8
    ("Wan2.1-T2V-1.3B", (21, 60, 104, 16), 16.0, 5.0),
    # 121 frames of 704x1280, coded 4x16x16
    ("Wan2.2-TI2V-5B", (31, 44, 80, 48), 24.0, 5.0),
    # 49 frames of 480x720, coded 4x8x8
    ("CogVideoX-2b", (13, 60, 90, 16), 8.0, 6.0),
    # 81 frames: 21 of latents, of which two make a token
    ("CogVideoX1.5-5B", (22, 96, 170, 16), 16.0, 6.0),
  ],
)
def test_published_sizes(name, shape, fps, guidance):
  assert published_recipe(PUBLISHED[name]) == Recipe(shape, fps, 50, guidance)


def test_a_folder_without_recipe_is_sampled_as_published(saved):
  (saved / "recipe.json").unlink()
  model = Pipeline.load(saved)
  assert model.recipe.latent_shape == (21, 60, 104, 4)
  assert model.recipe == published_recipe(model.denoiser.config)
  smaller = model.recipe.of_size([2, 4, 4, 4])
  assert smaller == dataclasses.replace(model.recipe, latent_shape=(2, 4, 4, 4))
