"""How a model is sampled: size, steps, guidance, and a student's times."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dollar_jax.diffusion import timesteps


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
    negative_prompt: what guidance leads away from.
  """

  latent_shape: tuple[int, ...]
  fps: float = 8.0
  steps: int = 50
  guidance: float = 1.0
  grid: tuple[float, ...] = ()
  fresh_noise: float = 1.0
  negative_prompt: str = ""

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
