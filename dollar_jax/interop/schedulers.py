"""Scheduler configs of diffusers ⇄ noise process, prediction and time shift."""

import os
from typing import Any

from dollar_jax.diffusion.process import FlowProcess, Process, VPProcess
from dollar_jax.models.denoiser import Denoiser

TICKS = 1000
"""Timesteps of every scheduler here, as `Denoiser.clock` counts them."""

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {
  "linear": "linear",
  "scaled_linear": "scaled_linear",
  "cosine": "squaredcos_cap_v2",
}
COGVIDEOX = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
SCHEDULERS = (
  "FlowMatchEulerDiscreteScheduler",
  "UniPCMultistepScheduler",
  *COGVIDEOX,
)
"""Scheduler classes that can be read; the second with flow sigmas only."""


def scheduler_to_json(denoiser: Denoiser) -> dict[str, Any]:
  """The scheduler config of a denoiser, its diffusers version aside.

  Raises:
    ValueError: if no scheduler of diffusers describes it.
  """
  process, kind = denoiser.process, denoiser.prediction
  common = {"num_train_timesteps": TICKS}
  if isinstance(process, FlowProcess) and kind == "flow":
    return common | {
      "_class_name": "FlowMatchEulerDiscreteScheduler",
      "shift": float(denoiser.shift),
    }
  if (
    isinstance(process, VPProcess)
    and kind in PREDICTIONS
    and denoiser.shift == 1.0
    and process.num_train_timesteps == TICKS
  ):
    return common | {
      "_class_name": "CogVideoXDDIMScheduler",
      "beta_start": process.beta_start,
      "beta_end": process.beta_end,
      "beta_schedule": BETAS[process.beta_schedule],
      "clip_sample": False,
      "prediction_type": PREDICTIONS[kind],
      "rescale_betas_zero_snr": process.zero_terminal_snr,
      "snr_shift_scale": process.snr_shift_scale,
      "timestep_spacing": "trailing",
    }
  raise ValueError(
    f"no diffusers scheduler describes process {process} with prediction "
    f"{kind!r} and time shift {denoiser.shift}; a flow process takes 'flow', a "
    f"vp process of {TICKS} timesteps {sorted(PREDICTIONS)} and no shift"
  )


def scheduler_from_json(
  raw: dict[str, Any], file: str | os.PathLike
) -> tuple[Process, str, float]:
  """Noise process, prediction type and time shift of a scheduler config.

  Args:
    raw: the config.
    file: where it was read, for the error messages.

  Raises:
    ValueError: if it describes what dollar_jax does not do.
  """
  name = raw.get("_class_name")
  if name not in SCHEDULERS:
    raise ValueError(
      f"{file} names scheduler {name!r}; known are {', '.join(SCHEDULERS)}"
    )
  try:
    if raw.get("num_train_timesteps", TICKS) != TICKS:
      raise ValueError(f"num_train_timesteps must be {TICKS}")
    if name in COGVIDEOX:
      kinds = {v: k for k, v in PREDICTIONS.items()}
      betas = {v: k for k, v in BETAS.items()}
      process = VPProcess(
        beta_start=float(raw.get("beta_start", 0.00085)),
        beta_end=float(raw.get("beta_end", 0.012)),
        beta_schedule=betas[raw.get("beta_schedule", "scaled_linear")],
        zero_terminal_snr=bool(raw.get("rescale_betas_zero_snr", False)),
        snr_shift_scale=float(raw.get("snr_shift_scale", 3.0)),
      )
      return process, kinds[raw.get("prediction_type", "epsilon")], 1.0
    if raw.get("use_dynamic_shifting"):
      raise ValueError("use_dynamic_shifting is not supported")
    key = "shift"
    if name == "UniPCMultistepScheduler":
      key = "flow_shift"
      if raw.get("prediction_type") != "flow_prediction":
        raise ValueError("prediction_type must be flow_prediction")
    shift = float(raw.get(key, 1.0))
    if not 0.0 < shift < float("inf"):
      raise ValueError(f"{key}={shift} must be above 0")
    return FlowProcess(), "flow", shift
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{file} cannot be used: {error}") from None
