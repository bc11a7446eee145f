"""How a model is sampled: size, steps, guidance, and a student's times."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dollar_jax.diffusion import timesteps
from dollar_jax.models.cogvideox import CogVideoXConfig
from dollar_jax.models.wan import WanConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a model is sampled.

  Attributes:
    latent_shape: T, H, W, C.
    fps: frames a second.
    steps: network steps; for a student K.
    guidance: standard guidance scale; 1 calls the network once a step.
    grid: a student's K times; empty for a teacher, which integrates the ODE.
    fresh_noise: share of fresh noise between a student's steps.
  """

  latent_shape: tuple[int, ...]
  fps: float = 8.0
  steps: int = 50
  guidance: float = 1.0
  grid: tuple[float, ...] = ()
  fresh_noise: float = 1.0

  @property
  def network_evaluations(self) -> int:
    """Evaluations of the network a video: two a guided step."""
    return self.steps * (1 if self.guidance == 1.0 else 2)

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Recipe":
    """Reads what recipe.json holds; other entries are left alone.

    Raises:
      ValueError: if the latent's shape is missing.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    known = {k: v for k, v in values.items() if k in names}
    if "latent_shape" not in known:
      raise ValueError(
        "recipe.json has no latent_shape [T, H, W, C]; add the size of the "
        "videos to sample"
      )
    for name in ("latent_shape", "grid"):
      known[name] = tuple(known.get(name, ()))
    return cls(**known)

  def to_json(self) -> dict[str, Any]:
    """What recipe.json holds."""
    return dataclasses.asdict(self)

  def of_size(self, latent_shape: Sequence[int]) -> "Recipe":
    """The recipe of videos of another size."""
    return dataclasses.replace(self, latent_shape=tuple(latent_shape))

  def as_teacher(self, steps: int, guidance: float) -> "Recipe":
    """The recipe of `steps` guided ODE steps with the same sizes.

    Raises:
      ValueError: if steps is below 1.
    """
    timesteps.teacher_grid(steps)  # checks
    return dataclasses.replace(self, steps=steps, guidance=guidance, grid=())

  def as_student(self, grid: Sequence[float]) -> "Recipe":
    """The recipe of a few-step student with the same sizes."""
    grid = tuple(float(t) for t in timesteps.check_student_grid(tuple(grid)))
    return dataclasses.replace(self, steps=len(grid), guidance=1.0, grid=grid)


def published_recipe(config: WanConfig | CogVideoXConfig) -> Recipe:
  """How the publishers of a transformer sample it; any size is possible.

  Wan 2.1 makes 81 frames of 480x832, Wan 2.2 5B 121 of 704x1280, CogVideoX the
  size in its config. CogVideoX 1.5 makes whole pairs of latent frames, where
  its pipeline makes one more and drops it.
  """
  if isinstance(config, CogVideoXConfig):
    stretch = config.patch_size_t or 1
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    frames = -(-frames // stretch) * stretch
    size = frames, config.sample_height, config.sample_width
    fps = 8.0 if config.patch_size_t is None else 16.0
    return Recipe((*size, config.out_channels), fps, 50, 6.0)
  if config.out_channels == 48:
    return Recipe((31, 44, 80, 48), 24.0, 50, 5.0)
  return Recipe((21, 60, 104, config.out_channels), 16.0, 50, 5.0)
