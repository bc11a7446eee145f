"""`dollar prepare` among bad files, bad lists and kills."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import bad_files, odd_videos

MOST_BYTES = 2 * 2**30
MOST_SECONDS = 300
KILLS = 20
FLAGS = (
  *("--codec=linear", "--fit", "--channels=16", "--fit_clips=4"),
  *("--video_size=8x32x48", "--fps=8", "--max_skipped=1"),
)


def start(videos, out, *flags):
  """The command in a process, and a process group, of its own."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "dollar_jax", "prepare"),
      *(f"--videos={videos}", f"--out={out}", *FLAGS, *flags),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
    text=True,
  )


def memory_of(pid):
  """Bytes that a process has in memory; 0 once it has ended."""
  try:
    pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
  except (OSError, IndexError):
    return 0
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def contents(folder):
  """Every file below a folder with what it holds."""
  files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
  return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def seen(folder):
  """Every name below a folder, with its kind, size and time."""
  found = {}
  for path in sorted(folder.rglob("*")):
    state = path.lstat()
    found[str(path)] = state.st_mode, state.st_size, state.st_mtime_ns
  return found


def rows_of(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_bad_files_spoil_nothing(tmp_path):
  videos, out = tmp_path / "videos", tmp_path / "out" / "set"
  good, bad = bad_files.write_all(videos)
  assert len(bad) >= 40
  before = seen(videos)
  process, most, began = start(videos, out), 0, time.monotonic()
  while process.poll() is None:
    most = max(most, memory_of(process.pid))
    if time.monotonic() - began > MOST_SECONDS:
      os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.02)
  with process.stdout as stream:
    said = stream.read()
  assert process.returncode == 0, said
  assert "Traceback" not in said
  assert 0 < most < MOST_BYTES
  assert seen(videos) == before
  assert {p.name for p in tmp_path.iterdir()} == {"videos", "out"}
  assert [p.name for p in out.parent.iterdir()] == ["set"]

  clips = {r["file_name"]: r["clips"] for r in rows_of(out / "sources.jsonl")}
  assert {name: clips.get(name) for name in good} == dict.fromkeys(good, 2)
  skipped = {r["file_name"]: r for r in rows_of(out / "skipped.jsonl")}
  assert not set(skipped) & set(good)
  assert all(row["reason"] for row in skipped.values())
  silent = set(bad) - set(skipped)
  assert all(name.startswith(bad_files.MAY_BE_WHOLE) for name in silent), silent
  for name, reason in (
    ("bomb16000.mov", "pixels"),
    ("bomb20000.mov", "cannot be read"),
    ("concat.mp4", "it is a list of other files"),
    ("pipe.mp4", "there is no such file"),
    ("loop-a.mp4", "there is no such file"),
    ("/dev/zero", "there is no such file"),
    ("../../etc/passwd", ""),
  ):
    assert reason in skipped[name]["reason"], name


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """Thirty small videos."""
  folder = tmp_path_factory.mktemp("videos")
  rows = []
  for i in range(30):
    video = odd_videos.moving_square(16)
    video[:, -8:, : 2 * i + 2] = 255
    odd_videos.write(folder / f"{i}.mp4", video)
    rows.append(json.dumps({"file_name": f"{i}.mp4", "text": f"square {i}"}))
  (folder / "metadata.jsonl").write_text("\n".join(rows))
  return folder


@pytest.fixture(scope="module")
def undisturbed(videos):
  """The set of a run that nothing stopped, and the seconds it took."""
  out, began = videos.parent / "undisturbed", time.monotonic()
  process = start(videos, out, "--shard_size=1")
  said, _ = process.communicate()
  assert process.returncode == 0, said
  return contents(out), time.monotonic() - began


@pytest.mark.slow  # twenty starts
@pytest.mark.timeout(1800)
def test_killed_at_random_it_ends_with_the_same_bytes(
  videos, undisturbed, tmp_path
):
  wanted, seconds = undisturbed
  draw, out, killed, partial = random.Random(0), tmp_path / "set", 0, 0
  while killed < KILLS:
    process = start(videos, out, "--shard_size=1")
    try:
      process.wait(draw.uniform(0.3, 1.0) * seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      killed += 1
      partial += 0 < len(contents(out) if out.exists() else ()) < len(wanted)
    process.stdout.close()
    if process.returncode == 0:  # it was faster; from the start once more
      assert contents(out) == wanted
      shutil.rmtree(out)
  process = start(videos, out, "--shard_size=1")
  said, _ = process.communicate()
  assert process.returncode == 0, said
  assert contents(out) == wanted
  assert partial, "every kill came before anything was written"
