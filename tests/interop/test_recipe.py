"""`interop.recipe`: sizes of published models."""

import dataclasses

import pytest

from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.interop.recipe import Recipe, published_recipe
from dollar_jax.models.cogvideox import CogVideoXConfig
from dollar_jax.models.wan import WanConfig


@pytest.mark.parametrize(
  "config, shape, fps, guidance",
  [
    # the defaults of WanPipeline: 81 frames of 480x832, coded 4x8x8
    (WanConfig(), (21, 60, 104, 16), 16.0, 5.0),
    # 121 frames of 704x1280, coded 4x16x16
    (
      WanConfig(in_channels=48, out_channels=48),
      (31, 44, 80, 48),
      24.0,
      5.0,
    ),
    # 49 frames of 480x720, coded 4x8x8
    (CogVideoXConfig(), (13, 60, 90, 16), 8.0, 6.0),
    # 81 frames: 21 of latents, of which two make a token
    (
      CogVideoXConfig(
        sample_frames=81, sample_height=96, sample_width=170, patch_size_t=2
      ),
      (22, 96, 170, 16),
      16.0,
      6.0,
    ),
  ],
)
def test_published_sizes(config, shape, fps, guidance):
  assert published_recipe(config) == Recipe(shape, fps, 50, guidance)


def test_a_folder_without_recipe_is_sampled_as_published(saved):
  (saved / "recipe.json").unlink()
  model = Pipeline.load(saved)
  assert model.recipe.latent_shape == (21, 60, 104, 4)
  assert model.recipe == published_recipe(model.denoiser.config)
  smaller = model.recipe.of_size([2, 4, 4, 4])
  assert smaller == dataclasses.replace(model.recipe, latent_shape=(2, 4, 4, 4))
