"""Data sets written once, by a process that must not import TensorFlow."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = textwrap.dedent("""
  import sys
  import numpy as np
  from dollar_jax.data import latents
  from dollar_jax.data.moving_digits import MovingDigits

  folder = sys.argv[1]
  MovingDigits(clips=6, data_dir=f"{folder}/digits").download_and_prepare()
  examples = (
    latents.Example(
      latents=np.full((2, 3, 4, 5), i, np.float32) + np.float32(0.1),
      text=np.full((3, 7), -i, np.float32),
      text_mask=np.arange(3) < i % 4,
      prompt=f"prompt {i} \u00fc",
    )
    for i in range(9)
  )
  latents.write(f"{folder}/latents", examples, (2, 3, 4, 5), (3, 7))
  # not even where it is installed; where it is not, importing it has failed
  assert "tensorflow" not in sys.modules
""")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder with a set of `digits` and one of nine `latents`."""
  folder = tmp_path_factory.mktemp("prepared")
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(folder)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder
