"""Tunes a 4-step student to smaller JPEGs through the latent reward model.

  dollar train --config=configs/digits/student.py --workdir=runs/student
  dollar train --config=configs/digits/reward.py --workdir=runs/reward \
    --config.student=runs/student
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The student's run, going on from a student, with a reward."""
  student = pathlib.Path(__file__).with_name("student.py")
  config = runpy.run_path(str(student))["get_config"]()
  config.student = "runs/student"
  config.steps = 60
  config.optimizer.learning_rate = 1e-4
  config.optimizer.ema = 0.98
  config.score_optimizer.learning_rate = 2e-4
  config.distill.reward_weight = 0.2
  config.distill.cd_warmup = config.distill.score_warmup = 0
  config.reward.name = "jpeg_compressibility"
  config.reward_optimizer.learning_rate = 1e-3
  config.latent_reward.update({"width": 64, "depth": 2})
  return config
