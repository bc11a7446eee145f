"""A video file cut into clips of one size, length and frame rate."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

LONGEST_GAP = 10
"""Seconds between two frames, above which a video counts as broken."""

MOST_PIXELS = 2**26
"""Of a frame, four times those of 8K; a small file can claim any number."""

_LISTS = ("concat", "dash", "hls", "hls,applehttp", "imf")
_OPTIONS = {"protocol_whitelist": "file"}  # a playlist could name any address
_PROBED = 16


@dataclasses.dataclass(frozen=True)
class ClipForm:
  """What every clip of a set is like.

  Attributes:
    frames: F.
    height: H, pixels.
    width: W, pixels.
    fps: frames a second.
  """

  frames: int
  height: int
  width: int
  fps: float

  def __post_init__(self):
    sizes = self.frames, self.height, self.width
    if min(sizes) < 1 or not 0 < self.fps < 1000:
      raise ValueError(
        f"clips of {'x'.join(map(str, sizes))} (frames, height, width) at "
        f"{self.fps} fps cannot be made; all must be above 0, fps below 1000"
      )

  @property
  def rate(self) -> Fraction:
    """Frames a second, exactly: 23.976 is 24000/1001."""
    for denominator in (1, 1001):
      rate = Fraction(round(self.fps * denominator), denominator)
      if abs(rate - Fraction(self.fps)) < Fraction(1, 10000):
        return rate
    return Fraction(self.fps).limit_denominator(1000)


def cut_clips(path: str | os.PathLike, form: ClipForm) -> Iterator[np.ndarray]:
  """Decodes a file into clips that follow one another.

  At every tick of `form.fps` the nearest frame in time is taken, which is
  each frame once where the rates are the same. Frames are turned as the file
  says, pixels made square, the picture scaled until it covers the clip's size
  and cropped in its centre. What is left at the end is dropped.

  Args:
    path: any file that FFmpeg reads; frames of any depth become 8 bits.
    form: of the clips.

  Yields:
    uint8 [F, H, W, 3].

  Raises:
    ValueError: the reason, where there is no clip in the file or it breaks
      off; clips before the break were given out already.
  """
  clip, count = [], 0
  for frame in _ticks(path, form):
    clip.append(frame)
    if len(clip) == form.frames:
      yield np.stack(clip)
      clip, count = [], count + 1
  if not count:
    raise ValueError(
      f"it is too short: {len(clip)} frames at {form.fps:g} fps, and a clip "
      f"takes {form.frames}"
    )


def usual_form(
  paths: Sequence[str | os.PathLike], frames: int, multiple: int
) -> ClipForm:
  """The form that most of the first files have by themselves.

  Args:
    paths: files; the first 16 that are videos are looked at.
    frames: F.
    multiple: height and width are cut to multiples of it.

  Raises:
    ValueError: if there is none.
  """
  found = []
  for path in paths:
    try:
      with _opened(path) as container:
        stream = _video(container)
        frame = next(container.decode(stream))
        height, width = _shown(frame, _aspect(stream))
        rate = _plain_rate(float(stream.average_rate or 0))
    except (ValueError, OSError, StopIteration):
      continue
    sizes = [int(n) // multiple * multiple for n in (height, width)]
    if min(sizes) and 0 < rate < 1000:
      found.append(ClipForm(frames, *sizes, rate))
    if len(found) == _PROBED:
      break
  if not found:
    raise ValueError(
      "no file that is listed can be read as a video; look at the paths in "
      "the list"
    )
  return collections.Counter(found).most_common(1)[0][0]


def _ticks(path: str | os.PathLike, form: ClipForm) -> Iterator[np.ndarray]:
  """Frames uint8 [H, W, 3], one a tick of `form.fps`."""
  tick, count, rate = 0, 0, form.rate
  held = end = None
  scaler = VideoReformatter()  # frames would make one each
  for at, frame, aspect in _timed(path):
    count += 1
    if held is not None:
      middle = (held[0] + at) / 2
      picture = None
      while tick / rate <= middle:
        picture = (
          _picture(*held[1:], form, scaler) if picture is None else picture
        )
        yield picture
        tick += 1
    gap = at - held[0] if held is not None else Fraction(0)
    own = Fraction(frame.duration or 0) * (frame.time_base or 0)
    end = at + min(own or gap, LONGEST_GAP)
    held = at, frame, aspect
  if count == 1 and form.frames > 1:
    raise ValueError("it holds one frame only")
  if count == 1:
    end = 1 / rate
  picture = None
  while held is not None and tick / rate < end:
    picture = _picture(*held[1:], form, scaler) if picture is None else picture
    yield picture
    tick += 1


def _timed(
  path: str | os.PathLike,
) -> Iterator[tuple[Fraction, av.VideoFrame, Fraction]]:
  """Seconds from the first frame, growing; frames; width of their pixels."""
  start = last = None
  try:
    with _opened(path) as container:
      stream = _video(container)
      aspect = _aspect(stream)
      for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
          raise ValueError(_broken(last, "a frame is damaged"))
        if frame.pts is not None and frame.time_base:
          at = frame.pts * Fraction(frame.time_base)
        elif stream.average_rate:
          at = number / Fraction(stream.average_rate)
        else:
          raise ValueError("its frames have no times")
        start = at if start is None else start
        at -= start
        if last is not None and at <= last:
          continue
        if last is not None and at - last > LONGEST_GAP:
          reason = f"the next frame comes {float(at - last):.0f} s later"
          raise ValueError(_broken(last, reason))
        last = at
        yield at, frame, aspect
  except av.error.FFmpegError as error:
    what = (error.strerror or str(error)).lower()
    if last is not None:
      raise ValueError(_broken(last, what)) from None
    raise ValueError(f"it cannot be read as a video ({what})") from None
  if last is None:
    raise ValueError("it holds no frame")


def _plain_rate(rate: float) -> float:
  """A rate without what the times in a file were rounded by."""
  whole = round(rate)
  return float(whole if abs(rate - whole) < rate / 2000 else round(rate, 3))


def _broken(last: Fraction | None, what: str) -> str:
  return f"it breaks off after {float(last or 0):.1f} s ({what})"


def _opened(path: str | os.PathLike) -> av.container.InputContainer:
  return av.open(os.fspath(Path(path).resolve()), options=_OPTIONS)


def _video(container: av.container.InputContainer) -> av.VideoStream:
  if container.format.name in _LISTS:
    raise ValueError("it is a list of other files")
  if not container.streams.video:
    kind = "audio only" if container.streams.audio else "nothing to see"
    raise ValueError(f"it has no video stream ({kind})")
  stream = container.streams.video[0]
  width, height = stream.width or 0, stream.height or 0
  if width * height > MOST_PIXELS:
    raise ValueError(
      f"its frames of {width}x{height} have more than {MOST_PIXELS:,} pixels"
    )
  # frames may be larger than the container says
  stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
  return stream


def _turn(frame: av.VideoFrame) -> int:
  """Quarter turns, counter-clockwise, by which a frame is to be shown."""
  turn, rest = divmod(round(frame.rotation), 90)
  if rest:
    raise ValueError(
      f"it is turned by {frame.rotation} degrees, no right angle"
    )
  return turn % 4


def _aspect(stream: av.VideoStream) -> Fraction:
  """Width of a pixel that is of height 1."""
  return Fraction(stream.sample_aspect_ratio or 1)


def _shown(frame: av.VideoFrame, aspect: Fraction) -> tuple[Fraction, Fraction]:
  """Height and width as the frame is to be shown, with square pixels."""
  height, width = Fraction(frame.height), frame.width * aspect
  return (width, height) if _turn(frame) % 2 else (height, width)


def _picture(
  frame: av.VideoFrame,
  aspect: Fraction,
  form: ClipForm,
  scaler: VideoReformatter,
) -> np.ndarray:
  """A frame scaled, turned and cropped: uint8 [H, W, 3]."""
  height, width = _shown(frame, aspect)
  scale = max(form.height / height, form.width / width)
  height = max(round(height * scale), form.height)
  width = max(round(width * scale), form.width)
  turn = _turn(frame)
  stored = (width, height) if turn % 2 else (height, width)
  picture = scaler.reformat(
    frame,
    height=stored[0],
    width=stored[1],
    format="rgb24",
    interpolation="BICUBIC",
  ).to_ndarray()
  picture = np.rot90(picture, turn)
  top = (height - form.height) // 2
  left = (width - form.width) // 2
  return picture[top : top + form.height, left : left + form.width]
