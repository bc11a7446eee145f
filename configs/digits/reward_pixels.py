"""Tunes a 4-step student by the reward's own gradient: CD + pixels.

  dollar train --config=configs/digits/student.py --workdir=runs/student
  dollar train --config=configs/digits/reward_pixels.py --workdir=runs/pixels \
    --config.student=runs/student

The way of T2V-Turbo, as a baseline: consistency distillation on noised clips,
and the gradient of a differentiable reward back through the decoder.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of reward.py with the gradient of a reward on pixels."""
  reward = pathlib.Path(__file__).with_name("reward.py")
  config = runpy.run_path(str(reward))["get_config"]()
  config.distill.update({"vsd_weight": 0.0, "inputs": "data"})
  config.distill.reward_weight = 0.0
  config.distill.pixel_weight = 0.2
  config.reward.name = "sharpness"
  return config
