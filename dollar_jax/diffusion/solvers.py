"""One step from a time to a lower one: a single formula for every process.

`x_s = alpha_s x0 + sigma_s eps_hat` with `eps_hat` read off `x_t` is DDIM
(arXiv 2010.02502, Eq. 12 at eta = 0) for vp and the Euler step of the
probability-flow ODE for flow.
"""

import chex
import jax.numpy as jnp

from dollar_jax.diffusion.process import Process, levels
from dollar_jax.typing import Array


def implied_noise(process: Process, x_t: Array, x0: Array, t: Array) -> Array:
  """Returns `eps_hat = (x_t - alpha x0) / sigma`, sigma floored at 1e-4."""
  alpha, sigma = levels(process, t, x_t)
  return (x_t - alpha * x0) / jnp.maximum(sigma, 1e-4)


def ddim_step(
  process: Process, x_t: Array, x0: Array, t: Array, s: Array
) -> Array:
  """Moves `x_t` at time `t` to time `s` along the ODE, given `x0`.

  Args:
    process: the noise process.
    x_t: [B, ...] at time t.
    x0: [B, ...] predicted clean latent at t.
    t: [B] present times.
    s: [B] target times; any k-step jump is one call with a distant `s`.

  Returns:
    `x_s` [B, ...]; exactly `x0` where `s` is 0 (alpha 1, sigma 0).
  """
  chex.assert_equal_shape([x_t, x0])
  alpha, sigma = levels(process, s, x_t)
  return alpha * x0 + sigma * implied_noise(process, x_t, x0, t)


def renoise_score(
  process: Process, t: Array, s: Array, eps: Array, fresh: float
) -> Array:
  """Gradient with respect to x0 of `renoise_step`'s log-density.

  A step from `t` to `s` is Gaussian, with mean `alpha x0 + sigma sqrt(1 -
  fresh²) eps_hat`, in which `eps_hat` depends on x0 too, and deviation `sigma
  fresh`. At the point that `eps` leads to the gradient is
  `(alpha_s - sigma_s sqrt(1 - fresh²) alpha_t / sigma_t) eps / (sigma_s
  fresh)`.

  Args:
    process: the noise process.
    t: [B] times before the step.
    s: [B] times after it, above 0.
    eps: [B, ...] the fresh noise that was drawn.
    fresh: its share, above 0.

  Returns:
    [B, ...].
  """
  alpha, sigma = levels(process, s, eps)
  alpha_t, sigma_t = levels(process, t, eps)
  kept = (1.0 - fresh**2) ** 0.5
  slope = alpha - sigma * kept * alpha_t / jnp.maximum(sigma_t, 1e-4)
  return slope * eps / (sigma * fresh)


def renoise_step(
  process: Process,
  x_t: Array,
  x0: Array,
  t: Array,
  s: Array,
  eps: Array,
  fresh: float,
) -> Array:
  """Moves a student from `t` to `s` with a share of fresh noise.

  The noise at `s` is `sqrt(1 - fresh²) eps_hat + fresh eps`: 1 forgets the
  path (the multistep consistency sampler, arXiv 2303.01469, Alg. 1), 0 is
  the deterministic `ddim_step`.

  Raises:
    ValueError: unless 0 ≤ fresh ≤ 1.
  """
  if not 0.0 <= fresh <= 1.0:
    raise ValueError(f"fresh noise is {fresh}; it must lie between 0 and 1")
  alpha, sigma = levels(process, s, x_t)
  noise = fresh * eps
  if fresh < 1.0:
    kept = (1.0 - fresh**2) ** 0.5
    noise = noise + kept * implied_noise(process, x_t, x0, t)
  return alpha * x0 + sigma * noise
