"""Scheduler configs of diffusers ⇄ noise process, prediction and time shift."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar_jax.diffusion.process import FlowProcess, Process, VPProcess
from dollar_jax.diffusion.timesteps import shift_time
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

FEW_STEPS = ("LCMScheduler", "FlowMatchLCMScheduler")
"""Those of students: how they step, not the process they were trained on."""


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


def student_scheduler_to_json(
  denoiser: Denoiser, grid: Sequence[float], fresh_noise: float
) -> dict[str, Any] | None:
  """The scheduler config that samples a few-step student in diffusers.

  With it a pipeline of diffusers, called with `num_inference_steps=K` and
  `guidance_scale=1`, takes our steps at our times.

  Args:
    denoiser: the student.
    grid: its K times.
    fresh_noise: share of fresh noise between its steps.

  Returns:
    The config, its diffusers version aside; None where diffusers has no
    scheduler of these steps: a share of fresh noise between 0 and 1, a vp
    student whose noise is not all fresh or whose times are not evenly on
    whole timesteps, or more than three times that no shift makes.
  """
  if fresh_noise not in (0.0, 1.0) and len(grid) > 1:
    return None
  fresh = fresh_noise == 1.0 or len(grid) == 1
  if isinstance(denoiser.process, FlowProcess):
    spacing = _flow_spacing(grid)
    kind = "FlowMatchLCM" if fresh else "FlowMatchEulerDiscrete"
    return spacing and {
      "_class_name": f"{kind}Scheduler",
      "num_train_timesteps": TICKS,
      **spacing,
    }
  timesteps = TICKS * np.asarray(grid, np.float64)
  even = TICKS - np.floor(np.linspace(0, TICKS, len(grid), endpoint=False))
  if not fresh or np.abs(timesteps - even).max() > 1e-3:
    return None
  return {
    "_class_name": "LCMScheduler",
    "num_train_timesteps": TICKS,
    "original_inference_steps": TICKS,
    "prediction_type": PREDICTIONS[denoiser.prediction],
    # the larger, the nearer its output is to the network's own x0
    "timestep_scaling": 1e6,
    "trained_betas": _betas(denoiser.process),
  }


def _flow_spacing(grid: Sequence[float]) -> dict[str, float] | None:
  """Settings with which a flow scheduler of diffusers spaces `grid`.

  It takes even times from 1 to the (shifted) last tick, shifts them, and
  stretches them about 1 to end at `shift_terminal`. Every grid that is a
  shift of even times, ours or another's, can be made so.
  """
  grid = np.asarray(grid, np.float64)
  if len(grid) == 1:
    return {"shift": 1.0}
  if len(grid) == 2:
    return {"shift": 1.0, "shift_terminal": float(grid[1])}

  def spaced(log_shift: float) -> np.ndarray:
    shift = np.exp(log_shift)
    last = shift_time(1.0 / TICKS, shift)
    times = shift_time(np.linspace(1.0, last, len(grid)), shift)
    return 1.0 - (1.0 - times) * (1.0 - grid[-1]) / (1.0 - times[-1])

  def miss(log_shift: float) -> float:
    return spaced(log_shift)[1] - grid[1]

  widest = np.log(100.0)
  if miss(-widest) * miss(widest) > 0:
    return None
  from scipy import optimize  # 0.4 s, only where a shift is sought

  log_shift = optimize.brentq(miss, -widest, widest, xtol=1e-12)
  if np.abs(spaced(log_shift) - grid).max() > 1e-6:
    return None
  return {
    "shift": float(np.exp(log_shift)),
    "shift_terminal": float(grid[-1]),
  }


def _betas(process: VPProcess) -> list[float]:
  """The process's betas one by one, every shift in them."""
  ticks = np.arange(TICKS + 1, dtype=np.float32) / TICKS
  abar = np.asarray(process.alpha(ticks), np.float64) ** 2
  return [float(beta) for beta in 1.0 - abar[1:] / abar[:-1]]


def is_few_steps(raw: dict[str, Any]) -> bool:
  """Whether a scheduler config is one of `student_scheduler_to_json`."""
  return raw.get("_class_name") in FEW_STEPS or bool(raw.get("shift_terminal"))


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
    for field in ("use_dynamic_shifting", "shift_terminal"):
      if raw.get(field):
        raise ValueError(f"{field} is not supported")
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
