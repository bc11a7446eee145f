"""Bytes of a frame as the codecs' signal, and back."""

import jax.numpy as jnp

from dollar_jax.typing import Array

HALF_RANGE = 127.5
"""Grey levels in a signal of 1."""


def to_signal(frames: Array) -> Array:
  """uint8 [..., 3] → float32 in [-1, 1]."""
  return frames.astype(jnp.float32) / HALF_RANGE - 1.0


def to_pixels(signal: Array) -> Array:
  """float32 in about [-1, 1] → float32 in [0, 255], clipped."""
  return jnp.clip((signal + 1.0) * HALF_RANGE, 0, 255)


def to_frames(signal: Array) -> Array:
  """float32 in about [-1, 1] → uint8, rounded and clipped."""
  return jnp.round(to_pixels(signal)).astype(jnp.uint8)
