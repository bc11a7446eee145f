"""Distils the small teacher of one's own clips into a 4-step student.

  dollar train --config=configs/clips/student.py --config.data.source=DATA \
    --config.teacher=runs/clips/teacher --workdir=runs/clips/student
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of the digits' student, shorter and for fewer clips a batch."""
  digits = pathlib.Path(__file__).parents[1] / "digits" / "student.py"
  config = runpy.run_path(str(digits))["get_config"]()
  config.teacher, config.data.source = "runs/clips/teacher", "runs/clips/data"
  config.data.batch_size = 8
  config.steps = 120
  config.checkpoint.every = 40
  return config
