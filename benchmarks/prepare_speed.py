"""Clips a second of `dollar prepare`, beside a loop that only decodes them.

  python -m benchmarks.prepare_speed --videos=../shared/data/clips

The floor is PyAV decoding every frame to RGB, one file after another: the
plain loop of its documentation, and one with all that makes it faster
(FFmpeg's threads, one scaler a file). `dollar prepare` does that, and hashes,
encodes with the linear codec, and writes. Each is measured in turn, the command
from start to end and also without the seconds that it takes to do nothing (a
set that is finished already).
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from dollar_jax.data.sources import read_sources


def decode(videos: Path, tuned: bool) -> int:
  """Decodes all listed files to RGB; returns the number of frames."""
  count = 0
  for source in read_sources(videos):
    with av.open(str(source.path)) as container:
      scaler = VideoReformatter()
      if tuned:
        container.streams.video[0].thread_type = "AUTO"
      for frame in container.decode(video=0):
        if tuned:
          scaler.reformat(frame, format="rgb24").to_ndarray()
        else:
          frame.to_ndarray(format="rgb24")
        count += 1
  return count


def prepare(videos: Path, out: Path, processes: int, flags: list[str]) -> None:
  """Runs the command in so many processes, and waits for all.

  Raises:
    RuntimeError: if one fails.
  """
  command = [sys.executable, "-m", "dollar_jax", "prepare"]
  command += [f"--videos={videos}", f"--out={out}", "--codec=linear", *flags]
  each: list[list[str]] = [[]]
  if processes > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    command += [f"--coordinator=127.0.0.1:{port}"]
    command += [f"--num_processes={processes}"]
    each = [[f"--process_id={i}"] for i in range(processes)]
  running = [
    subprocess.Popen(
      command + own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for own in each
  ]
  for process in running:
    said, _ = process.communicate()
    if process.returncode:
      raise RuntimeError(said)


def seconds(call: Callable, *args: Any) -> float:
  """Wall time of a call."""
  began = time.perf_counter()
  call(*args)
  return time.perf_counter() - began


def measure(videos: Path, repeats: int, flags: list[str]) -> dict[str, float]:
  """Medians over the repeats, in which each way has its turn."""
  found: dict[str, list[float]] = {}

  def add(name: str, value: float) -> None:
    found.setdefault(name, []).append(value)

  for _ in range(repeats):
    add("plain", seconds(decode, videos, False))
    add("tuned", seconds(decode, videos, True))
    for processes in (1, 2):
      folder = Path(tempfile.mkdtemp())
      out = folder / "set"
      whole = seconds(prepare, videos, out, processes, flags)
      nothing = seconds(prepare, videos, out, processes, flags)
      add(f"{processes} whole", whole)
      add(f"{processes} work", whole - nothing)
      shutil.rmtree(folder)
  return {name: statistics.median(values) for name, values in found.items()}


def table(found: dict[str, float], files: int) -> str:
  """Files a second, and shares of both floors."""
  head = f"{'s':>8}{'files/s':>9}{'of plain':>10}{'of tuned':>10}"
  lines = [f"{'':34}{head}"]
  for name, title in (
    ("plain", "PyAV, decoding only"),
    ("tuned", "PyAV, decoding only, tuned"),
    ("1 work", "dollar prepare, without its start"),
    ("1 whole", "dollar prepare, start to end"),
    ("2 work", "two processes, without their start"),
    ("2 whole", "two processes, start to end"),
  ):
    took = found[name]
    shares = [found[floor] / took for floor in ("plain", "tuned")]
    cells = "".join(f"{share:10.2f}" for share in shares)
    lines.append(f"{title:34}{took:8.1f}{files / took:9.2f}{cells}")
  return "\n".join(lines)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--videos", type=Path, required=True)
  parser.add_argument("--repeats", type=int, default=3)
  args, flags = parser.parse_known_args()
  flags = flags or ["--fit"]
  found = measure(args.videos, args.repeats, flags)
  print(table(found, len(read_sources(args.videos))))


if __name__ == "__main__":
  main()
