"""Many clips in one moving picture, as bytes that a web page can carry.

One picture, not one a clip: its clips cannot drift apart, and a phone has to
decode one video instead of fifty.
"""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

GAP = 4
"""Pixels between clips."""

_GREY = 128  # of the gaps; visible between black clips and between white ones
_H264 = "libx264"


def mosaic(clips: np.ndarray, scale: int = 1) -> np.ndarray:
  """Lays clips out in rows and columns.

  Args:
    clips: uint8 [R, C, F, H, W, 3].
    scale: every pixel becomes a square of this side.

  Returns:
    uint8 [F, height, width, 3].

  Raises:
    ValueError: if clips is not such an array or is empty.
  """
  clips = np.asarray(clips)
  good = clips.ndim == 6 and clips.shape[-1] == 3 and clips.size
  if not good or clips.dtype != np.uint8:
    raise ValueError(
      f"clips of shape {clips.shape} and type {clips.dtype} cannot be laid "
      "out; give uint8 [R, C, F, H, W, 3]"
    )
  clips = clips.repeat(scale, 3).repeat(scale, 4)
  rows, columns, frames, height, width, _ = clips.shape
  step = (height + GAP, width + GAP)
  size = (rows * step[0] - GAP, columns * step[1] - GAP)
  sheet = np.full((frames, *size, 3), _GREY, np.uint8)
  for row in range(rows):
    for column in range(columns):
      top, left = row * step[0], column * step[1]
      cell = clips[row, column]
      sheet[:, top : top + height, left : left + width] = cell
  return sheet


def encode(frames: np.ndarray, fps: float) -> tuple[str, bytes]:
  """Encodes frames as H.264 mp4, or as animated WebP where FFmpeg lacks x264.

  Args:
    frames: uint8 [F, H, W, 3].
    fps: frames a second.

  Returns:
    (media type, file).
  """
  if _H264 not in av.codecs_available:
    return "image/webp", _encode_webp(frames, fps)
  height, width = frames.shape[1:3]
  even = [(0, 0), (0, height % 2), (0, width % 2), (0, 0)]  # yuv420p wants it
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    rate = Fraction(fps).limit_denominator(1000)
    stream = container.add_stream(_H264, rate=rate)
    stream.height, stream.width = height + height % 2, width + width % 2
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "20", "preset": "slow"}
    for frame in np.pad(frames, even, mode="edge"):
      picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return "video/mp4", file.getvalue()


def png(picture: np.ndarray) -> bytes:
  """Encodes uint8 [H, W, 3]."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG", optimize=True)
  return file.getvalue()


def _encode_webp(frames: np.ndarray, fps: float) -> bytes:
  first, *rest = (Image.fromarray(frame) for frame in frames)
  file = io.BytesIO()
  first.save(
    file,
    "WEBP",
    save_all=True,
    append_images=rest,
    duration=round(1000 / fps),
    loop=0,
    lossless=True,
  )
  return file.getvalue()
