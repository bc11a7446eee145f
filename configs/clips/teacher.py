"""Trains a small teacher on the latents of one's own clips, as an exercise.

  dollar train --config=configs/clips/teacher.py --config.data.source=DATA \
    --workdir=runs/clips/teacher

DATA is what `dollar prepare --codec=linear --fit` made. docs/prepare.md has the
commands from clips to a report, with their times.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of the digits' teacher, of larger patches: 240 tokens a clip.

  That is for clips of 16x192x320; it takes any size whose latents, 8 times
  smaller, are multiples of 4.
  """
  digits = pathlib.Path(__file__).parents[1] / "digits" / "teacher.py"
  config = runpy.run_path(str(digits))["get_config"]()
  config.data.source = "runs/clips/data"
  config.data.batch_size = 8
  config.steps = 1500
  # neighbours in large clips are alike, which takes more noise to hide
  config.shift = 3.0
  config.model.patch_size = (1, 4, 4)
  config.model.num_layers = 6
  config.optimizer.learning_rate = 2e-3
  config.optimizer.ema = 0.995
  config.checkpoint.every = 250
  return config
