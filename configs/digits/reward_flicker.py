"""Tunes a 4-step student to steadier clips: a reward of whole clips.

  dollar train --config=configs/digits/student.py --workdir=runs/student
  dollar train --config=configs/digits/reward_flicker.py --workdir=runs/calm \
    --config.student=runs/student
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of reward.py with another reward."""
  reward = pathlib.Path(__file__).with_name("reward.py")
  config = runpy.run_path(str(reward))["get_config"]()
  config.reward.name = "temporal_flickering"
  return config
