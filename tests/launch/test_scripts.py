"""Every shell script of the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "benchmarks", "launch", "notebooks", "tests")


def is_shell(path):
  if path.suffix in (".sh", ".sbatch"):
    return True
  with path.open("rb") as file:
    return bool(re.match(rb"#!.*\b(ba|da)?sh\b", file.readline()))


FILES = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
SCRIPTS = sorted(path for path in FILES if path.is_file() and is_shell(path))
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]


def shellcheck(*arguments, text=None):
  folder = pathlib.Path(sys.executable).parent
  tool = shutil.which("shellcheck", path=f"{folder}:{os.environ['PATH']}")
  assert tool, "run launch/test.sh, which installs shellcheck"
  return subprocess.run(
    [tool, *arguments], capture_output=True, text=True, cwd=ROOT, input=text
  )


def test_all_scripts_are_found():
  launchers = {"demo.sh", "environment.sh", "slurm.sbatch", "test.sh"}
  launchers |= {"tpu_pod.sh", "worker.sh"}
  assert {f"launch/{name}" for name in launchers} | {".ci/run"} <= set(NAMES)


def test_shellcheck_finds_nothing():
  done = shellcheck(*NAMES)
  assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_sees_faults():
  done = shellcheck("-", text="#!/usr/bin/env bash\nrm -r $1\n")
  assert done.returncode == 1
  assert "SC2086" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_scripts_stop_at_faults_and_run_no_data(path):
  text = path.read_text()
  assert not re.search(r"(^|[\s;&|(])eval\s", text), "eval runs data"
  if path.name == "environment.sh":  # it is sourced
    return
  assert text.startswith("#!/usr/bin/env bash\n# ")
  assert re.search(r"^set -euo pipefail$", text, re.MULTILINE)
  assert os.access(path, os.X_OK)
