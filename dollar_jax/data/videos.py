"""mp4 files in and out, through PyAV."""

import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from dollar_jax.data.sources import read_metadata
from dollar_jax.files import written_whole

_CRF = "10"  # near lossless: an evaluation reads what was written


def write_video(
  path: str | os.PathLike, frames: np.ndarray, fps: float
) -> None:
  """Writes an H.264 mp4; the file appears whole or not at all.

  Args:
    path: the file.
    frames: uint8 [F, H, W, 3], height and width even.
    fps: frames a second, above 0.

  Raises:
    ValueError: if the frames are not such an array, or fps is not above 0.
    OSError: if the file cannot be written.
  """
  frames = np.asarray(frames)
  good = frames.ndim == 4 and frames.shape[-1] == 3 and len(frames)
  if (
    not good
    or frames.dtype != np.uint8
    or any(n % 2 for n in frames.shape[1:3])
  ):
    raise ValueError(
      f"a video of shape {frames.shape} and type {frames.dtype} cannot be "
      "written; give uint8 [F, H, W, 3] with even height and width"
    )
  if not 0 < fps < float("inf"):
    raise ValueError(f"fps is {fps}; it must be above 0, e.g. 8")
  with (
    written_whole(path, ".mp4") as part,
    av.open(str(part), "w") as container,
  ):
    rate = Fraction(fps).limit_denominator(1000)
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": _CRF, "preset": "medium"}
    for frame in frames:
      picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(picture))
    container.mux(stream.encode())


def read_video(path: str | os.PathLike) -> tuple[np.ndarray, float]:
  """Reads a whole video.

  Returns:
    (frames uint8 [F, H, W, 3], frames a second).

  Raises:
    ValueError: if the file is missing, is no video, or holds no frame.
  """
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise ValueError(f"{path} has no video stream; is it a video?")
      stream = container.streams.video[0]
      scaler = VideoReformatter()  # frames would make one each
      frames = [
        scaler.reformat(frame, format="rgb24").to_ndarray()
        for frame in container.decode(stream)
      ]
      fps = float(stream.average_rate or 0)
  except av.error.FFmpegError as error:
    raise ValueError(
      f"{path} cannot be read as a video ({error.strerror}); is it whole?"
    ) from None
  if not frames:
    raise ValueError(f"{path} holds no frame; is it whole?")
  return np.stack(frames), fps


def video_name(prompt: str, index: int) -> str:
  """VBench's file name of the index-th video of a prompt.

  A prompt that does not fit a file name is cut to 220 bytes of UTF-8, with
  "/" replaced; the longest of VBench has 210.
  """
  stem = prompt.replace("/", " ").encode()[:220].decode(errors="ignore")
  return f"{stem}-{index}.mp4"


def list_videos(folder: str | os.PathLike) -> list[tuple[Path, str]]:
  """The mp4 files of a folder with their prompts, by name.

  Prompts come from `metadata.jsonl` (file_name, text) where it is, else from
  VBench's file names, `{prompt}-{index}.mp4`.

  Raises:
    ValueError: if the folder is missing, holds no mp4 file, or its
      `metadata.jsonl` cannot be understood.
  """
  folder = Path(folder)
  files = sorted(folder.glob("[!.]*.mp4"))  # not what is still being written
  if not files:
    raise ValueError(f"{folder} holds no .mp4 file; give a folder of videos")
  metadata = folder / "metadata.jsonl"
  known = dict(read_metadata(metadata)) if metadata.exists() else {}
  return [
    (file, known.get(file.name, re.sub(r"-\d+$", "", file.stem)))
    for file in files
  ]
