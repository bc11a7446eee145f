"""Clips of different sizes, lengths and rates brought into step."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_GREY = 128  # around a picture of another shape
_MOST_FPS = 30.0


def in_step(
  clips: Sequence[tuple[np.ndarray, float]], longest: int
) -> tuple[np.ndarray, float]:
  """Clips that play side by side, each at its own speed.

  The highest rate is that of all, up to 30. The first clip's shape and length
  are those of all: others are made to fit into it, with grey around, and are
  cut, or stay at their last frame.

  Args:
    clips: (frames uint8 [F, H, W, 3], frames a second) of each.
    longest: pixels of the longer side, unless the first clip is smaller.

  Returns:
    (uint8 [N, F, H, W, 3], frames a second).
  """
  fps = min(max(rate for _, rate in clips), _MOST_FPS)
  seconds = len(clips[0][0]) / clips[0][1]
  times = np.arange(max(round(seconds * fps), 1)) / fps
  size = _within(clips[0][0].shape[1:3], longest)
  out = np.full((len(clips), len(times), *size, 3), _GREY, np.uint8)
  for clip, (frames, rate) in zip(out, clips, strict=True):
    # half a thousandth of a frame: 3 / 12 * 12 is less than 3
    shown = np.minimum((times * rate + 5e-4).astype(int), len(frames) - 1)
    _place(frames, shown, clip)
  return out, fps


def shrunk(frames: np.ndarray, longest: int) -> np.ndarray:
  """Frames [F, H, W, 3] whose longer side has `longest` pixels at most."""
  size = _within(frames.shape[1:3], longest)
  if size == frames.shape[1:3]:
    return frames
  out = np.empty((len(frames), *size, 3), np.uint8)
  _place(frames, np.arange(len(frames)), out)
  return out


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
  scale = min(1.0, longest / max(size))
  return round(size[0] * scale), round(size[1] * scale)


def _place(frames: np.ndarray, shown: np.ndarray, out: np.ndarray) -> None:
  """Scales the frames `shown` into the middle of `out` [F, H, W, 3]."""
  height, width = frames.shape[1:3]
  scale = min(out.shape[1] / height, out.shape[2] / width)
  size = round(width * scale), round(height * scale)
  left, top = (out.shape[2] - size[0]) // 2, (out.shape[1] - size[1]) // 2
  area = out[:, top : top + size[1], left : left + size[0]]
  how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
  scaled: dict[int, np.ndarray] = {}
  for target, index in zip(area, shown, strict=True):
    if index not in scaled:
      picture = Image.fromarray(frames[index])
      scaled = {index: np.asarray(picture.resize(size, how))}
    target[:] = scaled[index]
