"""Files that are to spoil the preparation of a folder, each by a seed.

  python -m tests.bad_files FOLDER

makes them, with a metadata.jsonl that lists them between good ones.
"""

import json
import os
import struct
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests import odd_videos as odd

GOOD = 6
LONG_NAME = "n" * 250 + ".mp4"
NAMES = (
  'with "quotes".mp4',
  "it's; rm -rf $HOME `id`.mp4",
  "two\nlines.mp4",
  "-rf.mp4",
  "%s%n{0}.mp4",
  "кадр 影片 🎬.mp4",
  LONG_NAME,
)
"""Odd names of good files; these arrive."""


MAY_BE_WHOLE = ("absurd", "cut", "overwritten", "no-rate")
"""Beginnings of the names of files of which something can be decoded."""


def write_all(folder: Path, seed: int = 0) -> tuple[list[str], list[str]]:
  """Makes the folder.

  Returns:
    Names of the good files, all of 16 frames, and those of the bad.
  """
  folder.mkdir(parents=True)
  good = []
  for i, name in enumerate([f"good{i}.mp4" for i in range(GOOD)] + [*NAMES]):
    video = odd.moving_square(16)
    video[:, -8:, : 3 * i + 3] = 255  # no two are alike
    plain = folder / "plain.mp4"
    odd.write(plain, video, movflags="faststart")
    plain.rename(folder / name)
    good.append(name)
  bad = _broken(folder, np.random.default_rng(seed))
  bad += _of_another_kind(folder) + _bombs(folder) + _no_files(folder)
  rows = [
    (name, f"caption of {name}") for pair in _zipped(good, bad) for name in pair
  ]
  lines = [json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows]
  (folder / "metadata.jsonl").write_text("".join(lines))
  return good, bad


def _zipped(good: list[str], bad: list[str]) -> list[list[str]]:
  """All in an order in which bad ones come before and between the good."""
  parts = np.array_split(np.array(bad, object), len(good))
  return [[*some, name] for some, name in zip(parts, good, strict=True)]


def _broken(folder: Path, rng: np.random.Generator) -> list[str]:
  """Real files that were cut off, overwritten or patched."""
  sources = {}
  for ending in ("mp4", "mkv", "avi"):
    file = odd.write(folder / f"source.{ending}", odd.moving_square(12))
    sources[ending] = file.read_bytes()
    file.unlink()
  made = {}
  for ending, content in sources.items():
    for i in range(5):
      size = int(rng.integers(1, len(content) * 3 // 5))
      made[f"cut{i}.{ending}"] = content[:size]
    damaged = bytearray(content)
    # from the first bytes on, so that nothing tells what it is
    damaged[: len(damaged) // 2] = rng.bytes(len(damaged) // 2)
    made[f"overwritten.{ending}"] = bytes(damaged)
  mp4 = sources["mp4"]
  for name, box, at, value in (
    ("absurd-length.mp4", b"mvhd", 20, 0xFFFFFFFF),
    ("absurd-count.mp4", b"stsz", 12, 0x7FFFFFFF),
    ("absurd-times.mp4", b"stts", 16, 0x7FFFFFFF),
    ("absurd-chunks.mp4", b"stco", 8, 0x7FFFFFFF),
    ("no-rate.mp4", b"mdhd", 16, 0),
    ("absurd-box.mp4", b"moov", -4, 0x7FFFFFFF),
  ):
    patched = bytearray(mp4)
    struct.pack_into(">I", patched, patched.index(box) + at, value)
    made[name] = bytes(patched)
  for name, content in made.items():
    (folder / name).write_bytes(content)
  return list(made)


def _of_another_kind(folder: Path) -> list[str]:
  """What only the name makes a video."""
  (folder / "empty.mp4").touch()
  (folder / "text.mp4").write_text("no video\n" * 1000)
  (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
  (folder / "zeros.mp4").write_bytes(bytes(50_000))
  Image.new("RGB", (64, 48)).save(folder / "picture.png")
  (folder / "picture.png").rename(folder / "picture.mp4")
  with zipfile.ZipFile(folder / "archive.mp4", "w") as archive:
    archive.writestr("../outside.txt", "no")
  (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
  (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile good0.mp4\n")
  odd.write_sound(folder / "sound.mp4")
  odd.write(folder / "one.mp4", odd.moving_square(1))
  names = ("empty", "text", "noise", "zeros", "picture", "archive", "list")
  return [f"{n}.mp4" for n in (*names, "concat", "sound", "one")]


def _bombs(folder: Path) -> list[str]:
  """Small files of huge pictures; FFmpeg itself refuses the larger ones."""
  made = []
  for side in (16_000, 20_000):
    black, name = Image.new("L", (side, side)), f"bomb{side}"
    black.save(folder / f"{name}-picture.mp4", "PNG")
    made.append(f"{name}-picture.mp4")
    content = (folder / f"{name}-picture.mp4").read_bytes()
    with av.open(str(folder / f"{name}.mov"), "w") as container:
      stream = container.add_stream("png", rate=8)
      stream.width = stream.height = 64  # as the container has it
      stream.pix_fmt = "gray"
      for i in range(12):
        packet = av.Packet(content)
        packet.stream, packet.pts, packet.dts = stream, i, i
        container.mux(packet)
    made.append(f"{name}.mov")
  return made


def _no_files(folder: Path) -> list[str]:
  """What is listed and is no file, or not one to be read."""
  (folder / "loop-a.mp4").symlink_to("loop-b.mp4")
  (folder / "loop-b.mp4").symlink_to("loop-a.mp4")
  (folder / "dangling.mp4").symlink_to("nowhere.mp4")
  (folder / "self").symlink_to(".")
  (folder / "folder.mp4").mkdir()
  os.mkfifo(folder / "pipe.mp4")
  names = ("loop-a", "loop-b", "dangling", "folder", "pipe", "gone")
  return [f"{n}.mp4" for n in names] + [
    "../../etc/passwd",
    "/dev/zero",
    "nul\0.mp4",
  ]


if __name__ == "__main__":
  print(*map(len, write_all(Path(sys.argv[1]))), "good and bad files")
