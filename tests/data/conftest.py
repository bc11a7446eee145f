"""Data sets written once, by a process in which TensorFlow cannot load."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = textwrap.dedent("""
  import sys

  class Absent:
    def find_spec(self, name, path=None, target=None):
      if name.partition(".")[0] == "tensorflow":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

  sys.meta_path.insert(0, Absent())
  import numpy as np
  from dollar_jax.data import latents
  from dollar_jax.data.moving_digits import MovingDigits

  folder = sys.argv[1]
  MovingDigits(clips=6, data_dir=folder).download_and_prepare()
  examples = (
    latents.Example(
      latents=np.full((2, 3, 4, 5), i, np.float32) + np.float32(0.1),
      text=np.full((3, 7), -i, np.float32),
      text_mask=np.arange(3) < i % 4,
      prompt=f"prompt {i} \u00fc",
    )
    for i in range(9)
  )
  latents.write(folder, examples, (2, 3, 4, 5), (3, 7))
  assert "tensorflow" not in sys.modules
""")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder with a set of moving digits and one of nine latents."""
  folder = tmp_path_factory.mktemp("prepared")
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(folder)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder
