"""Video files of every kind that a folder of clips can hold."""

import itertools
import struct
from fractions import Fraction

import av
import numpy as np

# Turns by a quarter, clockwise, as phones write it into mp4 files.
_QUARTER = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)


def moving_square(frames=16, height=48, width=64):
  """A bright square that moves right: uint8 [F, H, W, 3]."""
  video = np.full((frames, height, width, 3), 40, np.uint8)
  for i in range(frames):
    left = 4 + i * (width - 20) // max(frames - 1, 1)
    video[i, 8:20, left : left + 12] = (220, 180, 90)
  return video


def grey(levels, height=48, width=64):
  """Flat frames of these levels, by which a frame is known again."""
  video = np.zeros((len(levels), height, width, 3), np.uint8)
  video[:] = np.asarray(levels)[:, None, None, None]
  return video


def write(path, frames, times=None, fps=8, pix_fmt="yuv420p", **options):
  """Writes H.264; `times` are the frames' own, in seconds."""
  with av.open(str(path), "w", options=options) as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pix_fmt
    stream.options = {"crf": "10", "preset": "ultrafast"}
    base = stream.codec_context.time_base = Fraction(1, 1000)
    for i, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      at = Fraction(i, fps) if times is None else Fraction(times[i])
      frame.pts, frame.time_base = round(at / base), base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def write_sound(path):
  """Writes an mp4 file without a picture."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    for i in range(8):
      sound = np.zeros((1, 1024), np.float32)
      frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
      frame.sample_rate, frame.pts = 16000, i * 1024
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def turned(path, source):
  """A copy that is to be shown turned by a quarter, clockwise."""
  content = bytearray(source.read_bytes())
  at = content.index(b"tkhd") + 44
  content[at : at + 36] = struct.pack(">9i", *_QUARTER)
  path.write_bytes(content)
  return path


def cut_short(path, source, share):
  """A copy that breaks off; `source` has its index in front (faststart)."""
  content = source.read_bytes()
  path.write_bytes(content[: int(len(content) * share)])
  return path


def levels_of(frames):
  """The mean level of each frame, from which a grey one is known."""
  return [round(float(frame.mean())) for frame in frames]


def close(found, wanted, tolerance=3):
  """Whether grey levels are those expected, lossy as video is."""
  pairs = itertools.zip_longest(found, wanted, fillvalue=-100)
  return all(abs(a - b) <= tolerance for a, b in pairs)
