"""Parameters of a module, looked up at little cost while it is traced."""

import flax.linen as nn
import numpy as np

from dollar_jax.typing import Array


def parameter(
  module: nn.Module,
  name: str,
  init: nn.initializers.Initializer,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...] | None = None,
) -> Array:
  """Returns a parameter of `module`, made by `init` where it is not there yet.

  `Module.param` traces the initialiser at every call to learn what shape it
  would give; of a network that is called seven times in a step that is half
  the time of tracing it. Here the shape is told.

  Args:
    module: inside its compact `__call__`.
    name: of the parameter.
    init: `f(key, shape) -> array`.
    shape: what it must have.
    axes: logical names of its axes, for sharding; None names none.

  Raises:
    ValueError: if the parameter there has another shape.
  """
  if not module.has_variable("params", name):
    if axes is not None:
      init = nn.with_logical_partitioning(init, axes)
    return module.param(name, init, shape)
  value = nn.meta.unbox(module.get_variable("params", name))
  if np.shape(value) != shape:
    place = "/".join((*module.scope.path, name))
    raise ValueError(
      f"parameter {place} has shape {np.shape(value)}; the network takes "
      f"{shape}"
    )
  return value
