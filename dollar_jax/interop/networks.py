"""The transformer in a model's folder: its class, size and weights."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dollar_jax.interop.folders import read_json
from dollar_jax.interop.keymaps import TRANSFORMERS, Architecture
from dollar_jax.interop.orbax_weights import is_orbax, read_orbax
from dollar_jax.interop.weights import LazyTensor, read_weights
from dollar_jax.models.configs import CogVideoXConfig, WanConfig
from dollar_jax.typing import Params

WEIGHTS = "diffusion_pytorch_model"
"""Name of the weight files of a transformer or autoencoder."""


def read_form(folder: Path) -> Architecture:
  """What kind of transformer a folder holds.

  Raises:
    ValueError: if its config.json is missing, damaged, or of an unknown class.
  """
  raw = read_json(folder / "config.json")
  return known_class(raw, TRANSFORMERS, "transformer", folder)


def read_config(folder: Path, **options: Any) -> WanConfig | CogVideoXConfig:
  """Size of the transformer in a folder.

  Args:
    folder: the transformer's.
    **options: config fields that no folder holds, as in `Form.ours`.

  Raises:
    ValueError: as `read_form`, and for what is not supported.
  """
  architecture = read_form(folder)
  raw = read_json(folder / "config.json")
  try:
    return architecture.from_json(raw, **options)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from None


def open_weights(folder: Path) -> dict[str, LazyTensor]:
  """A transformer's state dict, read from disk when it is asked for.

  Raises:
    ValueError: if a file is missing or damaged, or config.json does not fit.
  """
  architecture = read_form(folder)
  if is_orbax(folder):
    config = read_config(folder, scan=False)
    return read_orbax(folder, architecture.keymap(config))
  weights = read_weights(folder, WEIGHTS)
  return {k: w for k, w in weights.items() if architecture.is_read(k)}


def form_of(module: nn.Module) -> Architecture:
  """What diffusers has for one of our networks.

  Raises:
    ValueError: if it has nothing.
  """
  for architecture in TRANSFORMERS.values():
    if type(module) is architecture.module:
      return architecture
  raise ValueError(
    f"a {type(module).__name__} has no diffusers twin; known are "
    f"{sorted(TRANSFORMERS)}"
  )


def template(module: nn.Module) -> Params:
  """Shapes of a transformer's parameters; computes nothing."""
  inputs = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in module.config.smallest_inputs.items()
  }
  variables = jax.eval_shape(module.init, jax.random.key(0), **inputs)
  return nn.meta.unbox(variables["params"])


def known_class(
  raw: dict[str, Any], known: dict[str, Any], part: str, folder: Path
) -> Any:
  """What a config.json's class name stands for.

  Raises:
    ValueError: if it is not in `known`.
  """
  name = raw.get("_class_name")
  if not isinstance(name, str) or name not in known:
    raise ValueError(
      f"{folder} holds a {part} of class {name!r}; known are {sorted(known)}"
    )
  return known[name]
