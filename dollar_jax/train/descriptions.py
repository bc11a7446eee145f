"""What must be equal for a checkpoint to fit a run."""

from typing import Any

from dollar_jax.models.denoiser import Denoiser
from dollar_jax.train.config import OptimizerConfig, to_dict


def architecture(denoiser: Denoiser) -> dict[str, Any]:
  """What decides the shapes of a denoiser's parameters, and their meaning."""
  config = to_dict(denoiser.config)
  how = ("dtype", "remat", "attention", "context")
  config = {k: v for k, v in config.items() if k not in how}
  process, prediction = denoiser.process.name, denoiser.prediction
  return {**config, "process": process, "prediction": prediction}


def structure(config: OptimizerConfig) -> dict[str, Any]:
  """What decides which arrays a network's state has."""
  return {
    "name": config.name,
    "clips": config.clip_norm > 0,
    "averages": config.ema > 0,
  }
