"""Tunes a 4-step student by a policy gradient, as a baseline: VSD + DDPO.

  dollar train --config=configs/digits/student.py --workdir=runs/student
  dollar train --config=configs/digits/reward_ddpo.py --workdir=runs/ddpo \
    --config.student=runs/student

All is as in reward.py, but that the true reward of fresh clips is climbed
itself, in every update, and no model of it.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of reward.py with a policy gradient."""
  reward = pathlib.Path(__file__).with_name("reward.py")
  config = runpy.run_path(str(reward))["get_config"]()
  config.distill.reward_weight = 0.0
  config.distill.ddpo_weight = 0.2
  return config
