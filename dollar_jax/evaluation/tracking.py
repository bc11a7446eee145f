"""Finds the one bright thing that moves through a dark clip.

Position is the centroid of the light above a threshold, which dim noise and
the ghosts of a codec stay below. Around it a square is read off and shrunk, so
that the same shape gives the same picture wherever it is.
"""

from typing import NamedTuple

import numpy as np

WINDOW = 16
"""Side of the square around the centroid, in pixels."""

SHAPE = 8
"""Side of the picture that the square is shrunk to."""

_THRESHOLD = 0.3  # of white; light below it is background
_LEAST_LIGHT = 1.0  # pixels' worth above the threshold, or nothing is there
_LEAST_STEP = 0.5  # pixels a frame, or nothing moves


class Track(NamedTuple):
  """Where the thing is.

  Attributes:
    centres: float32 [N, F, 2], row and column; 0 where nothing is seen.
    visible: bool [N, F].
  """

  centres: np.ndarray
  visible: np.ndarray


def grey(frames: np.ndarray) -> np.ndarray:
  """Mean of the colours: uint8 [N, F, H, W, 3] to float32 [N, F, H, W], 0-1."""
  # twice as fast as a mean over the last axis
  total = frames[..., 0].astype(np.float32)
  total += frames[..., 1]
  total += frames[..., 2]
  return total / 765.0


def track(clips: np.ndarray) -> Track:
  """Follows the light above the threshold in clips [N, F, H, W]."""
  light = np.maximum(clips - _THRESHOLD, 0)
  mass = light.sum((2, 3))
  visible = mass > _LEAST_LIGHT
  rows, columns = (np.arange(n, dtype=np.float32) for n in clips.shape[2:])
  moments = np.stack([light.sum(3) @ rows, light.sum(2) @ columns], -1)
  share = np.where(visible, 1 / np.maximum(mass, _LEAST_LIGHT), 0)
  return Track(moments * share[..., None], visible)


def shapes(clips: np.ndarray, found: Track) -> np.ndarray:
  """What is around each centre: [N, F, H, W] to [N, F, SHAPE * SHAPE].

  Read bilinearly, black beyond the edge; zero where nothing is seen.
  """
  along, across = (
    _samplers(found.centres[..., i], clips.shape[2 + i]) for i in (0, 1)
  )
  pictures = along @ clips @ across.swapaxes(2, 3)
  pictures *= found.visible[..., None, None]
  return pictures.reshape(*pictures.shape[:2], -1)


def first_motion(found: Track) -> np.ndarray:
  """Mean step [N, 2] before the first bounce; 0 where nothing moves.

  Steps much below the clip's usual one, as a trembling first frame makes
  them, are passed over; the first step that turns back ends the motion.
  """
  steps = np.diff(found.centres, axis=1)
  steps *= (found.visible[:, 1:] & found.visible[:, :-1])[..., None]
  lengths = np.linalg.norm(steps, axis=-1)
  usual = np.maximum(np.median(lengths, axis=1) / 2, _LEAST_STEP)
  counts = lengths >= usual[:, None]
  first = steps[np.arange(len(steps)), counts.argmax(1)]
  turned = np.einsum("nfi,ni->nf", steps, first) < 0
  counts &= ~np.logical_or.accumulate(turned & counts, axis=1)
  total = np.einsum("nfi,nf->ni", steps, counts)
  return total / np.maximum(counts.sum(1), 1)[:, None]


def _samplers(centres: np.ndarray, size: int) -> np.ndarray:
  """Matrices [N, F, SHAPE, size] that read a window of one axis."""
  offsets = np.arange(WINDOW, dtype=np.float32) - (WINDOW - 1) / 2
  at = centres[..., None, None] + offsets[:, None]
  hats = np.maximum(1 - np.abs(np.arange(size, dtype=np.float32) - at), 0)
  group = WINDOW // SHAPE
  return hats.reshape(*hats.shape[:2], SHAPE, group, size).mean(3)
