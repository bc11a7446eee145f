"""Noise processes `x_t = alpha(t) x0 + sigma(t) eps` and their conversions.

Time is `t` in [0, 1], 0 = data, 1 = noise, float32, for every process. A
network may predict `x0`, the noise `eps`, the VP velocity `v = alpha eps -
sigma x0` (Salimans & Ho, arXiv 2202.00512) or the flow velocity `flow =
eps - x0` (Lipman et al., arXiv 2210.02747; exact for alpha = 1 - t only).
"""

import dataclasses
import functools
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from dollar_jax.typing import Array

PREDICTIONS = ("x0", "eps", "v", "flow")


class Process(Protocol):
  """What a noise process offers: signal and noise level at a time."""

  name: str

  def alpha(self, t: Array) -> Array:
    """Signal level at `t`, the shape of `t`."""

  def sigma(self, t: Array) -> Array:
    """Noise level at `t`, the shape of `t`."""


@dataclasses.dataclass(frozen=True)
class FlowProcess:
  """Straight lines (rectified flow, Wan): alpha = 1 - t, sigma = t."""

  name: str = dataclasses.field(default="flow", init=False)

  def alpha(self, t: Array) -> Array:
    """Returns `1 - t`."""
    return 1.0 - t

  def sigma(self, t: Array) -> Array:
    """Returns `t`."""
    return t


@dataclasses.dataclass(frozen=True)
class VPProcess:
  """Variance preserving (DDPM, CogVideoX): alpha² + sigma² = 1.

  `t` maps to the discrete index `i = num_train_timesteps * t - 1`; the
  cumulative product of `1 - beta` is interpolated between indices, so that
  t = 1 is the last index and t = 0 is clean data.

  Attributes:
    beta_start: first beta.
    beta_end: last beta.
    beta_schedule: "scaled_linear" (square root of beta is linear), "linear",
      or "cosine" (Nichol & Dhariwal, arXiv 2102.09672).
    num_train_timesteps: number of discrete indices.
    zero_terminal_snr: rescales so that t = 1 is pure noise (Lin et al.,
      arXiv 2305.08891), as CogVideoX does.
    snr_shift_scale: CogVideoX's shift, abar / (s + (1 - s) abar); 1 is none.
  """

  beta_start: float = 0.00085
  beta_end: float = 0.012
  beta_schedule: str = "scaled_linear"
  num_train_timesteps: int = 1000
  zero_terminal_snr: bool = True
  snr_shift_scale: float = 1.0
  name: str = dataclasses.field(default="vp", init=False)

  @functools.cached_property
  def _alphas_cumprod(self) -> np.ndarray:
    # on the host, in float64: a table, not work for every step of a loop
    n = self.num_train_timesteps
    if self.beta_schedule == "scaled_linear":
      beta = np.linspace(self.beta_start**0.5, self.beta_end**0.5, n) ** 2
      abar = np.cumprod(1.0 - beta)
    elif self.beta_schedule == "linear":
      abar = np.cumprod(1.0 - np.linspace(self.beta_start, self.beta_end, n))
    elif self.beta_schedule == "cosine":
      u = np.arange(1, n + 1) / n
      level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
      abar = level / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    else:
      raise ValueError(
        f"beta_schedule {self.beta_schedule!r} is unknown; use one of "
        "'scaled_linear', 'linear', 'cosine'"
      )
    s = self.snr_shift_scale
    abar = abar / (s + (1.0 - s) * abar)
    if self.zero_terminal_snr:
      root = np.sqrt(abar)
      root = (root - root[-1]) * root[0] / (root[0] - root[-1])
      abar = root**2
    return np.concatenate([np.ones(1), abar]).astype(np.float32)

  def _abar(self, t: Array) -> Array:
    # not by jnp.interp: its search is a loop, which XLA for GPUs refuses to
    # compile inside a loop on a mesh (jax 0.10.2)
    n, table = self.num_train_timesteps, jnp.asarray(self._alphas_cumprod)
    at = jnp.clip(t.astype(jnp.float32), 0.0, 1.0) * n
    below = jnp.minimum(jnp.floor(at), n - 1.0)
    low, high = (table[below.astype(jnp.int32) + i] for i in (0, 1))
    return jnp.clip(low + (at - below) * (high - low), 0.0, 1.0)

  def alpha(self, t: Array) -> Array:
    """Returns the square root of the cumulative product at `t`."""
    return jnp.sqrt(self._abar(t))

  def sigma(self, t: Array) -> Array:
    """Returns `sqrt(1 - alpha²)` at `t`."""
    return jnp.sqrt(1.0 - self._abar(t))


def make_process(name: str, **options: float | str | bool) -> Process:
  """Builds the process called `name` ("flow" or "vp").

  Raises:
    ValueError: for an unknown name.
  """
  kinds = {"flow": FlowProcess, "vp": VPProcess}
  if name not in kinds:
    raise ValueError(
      f"noise process {name!r} is unknown; use one of {sorted(kinds)}"
    )
  return kinds[name](**options)


def levels(process: Process, t: Array, like: Array) -> tuple[Array, Array]:
  """Returns (alpha, sigma) of `t [B]`, shaped to multiply `like [B, ...]`."""
  t = t.astype(jnp.float32)
  shape = t.shape + (1,) * (like.ndim - t.ndim)
  return process.alpha(t).reshape(shape), process.sigma(t).reshape(shape)


def add_noise(process: Process, x0: Array, eps: Array, t: Array) -> Array:
  """Returns `x_t = alpha x0 + sigma eps`; `x0`, `eps` [B, ...], `t` [B]."""
  alpha, sigma = levels(process, t, x0)
  return alpha * x0 + sigma * eps


def to_x0(
  process: Process, prediction: Array, x_t: Array, t: Array, kind: str
) -> Array:
  """Converts a network's own output to its `x0` prediction, in float32.

  Args:
    process: the noise process.
    prediction: the output [B, ...].
    x_t: the noised input [B, ...].
    t: times [B] in [0, 1].
    kind: one of `PREDICTIONS`.

  Returns:
    `x0` [B, ...] float32. "eps" at t = 1 divides by alpha = 0 and is
    floored at 1e-4: use "v" or "flow" for few-step models.

  Raises:
    ValueError: for an unknown kind.
  """
  prediction = prediction.astype(jnp.float32)
  x_t = x_t.astype(jnp.float32)
  alpha, sigma = levels(process, t, x_t)
  if kind == "x0":
    return prediction
  if kind == "eps":
    return (x_t - sigma * prediction) / jnp.maximum(alpha, 1e-4)
  if kind == "v":  # alpha² + sigma² is 1 for vp; the division serves the rest
    return (alpha * x_t - sigma * prediction) / (alpha**2 + sigma**2)
  if kind == "flow":  # x_t = (alpha + sigma) x0 + sigma (eps - x0)
    return (x_t - sigma * prediction) / (alpha + sigma)
  raise ValueError(f"prediction {kind!r} is unknown; use one of {PREDICTIONS}")


def from_x0(
  process: Process, x0: Array, x_t: Array, t: Array, kind: str
) -> Array:
  """Inverse of `to_x0`: the output a network of `kind` would have given.

  Every kind but "x0" divides by sigma(t), which is floored at 1e-4.

  Raises:
    ValueError: for an unknown kind.
  """
  x0 = x0.astype(jnp.float32)
  alpha, sigma = levels(process, t, x0)
  eps = (x_t.astype(jnp.float32) - alpha * x0) / jnp.maximum(sigma, 1e-4)
  if kind == "x0":
    return x0
  if kind == "eps":
    return eps
  if kind == "v":
    return alpha * eps - sigma * x0
  if kind == "flow":
    return eps - x0
  raise ValueError(f"prediction {kind!r} is unknown; use one of {PREDICTIONS}")


def target(
  process: Process, x0: Array, eps: Array, t: Array, kind: str
) -> Array:
  """Training target of a network of `kind` for a known (x0, eps) pair.

  Unlike `from_x0` it divides by nothing.

  Raises:
    ValueError: for an unknown kind.
  """
  alpha, sigma = levels(process, t, x0)
  targets = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}
  targets["flow"] = eps - x0
  if kind not in targets:
    raise ValueError(
      f"prediction {kind!r} is unknown; use one of {PREDICTIONS}"
    )
  return targets[kind]
