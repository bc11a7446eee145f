"""Tunes a 4-step Wan student to PickScore through the latent reward model.

  dollar train --config=configs/wan/distill.py:t2v_1_3b,v5e \\
    --workdir=runs/wan --config.data.source=DIR
  dollar train --config=configs/wan/reward_pickscore.py:t2v_1_3b,v5e \\
    --workdir=runs/wan-pickscore --config.student=runs/wan \\
    --config.data.source=DIR

After the colon stand size and machine, as for distill.py. The weights of the
reward are yuvalkirstain/PickScore_v1 of the Hugging Face cache, or what
DOLLAR_PICKSCORE names. All three losses go on, the reward with the paper's
weight; aesthetics, motion and flicker, which nobody optimises, end the run when
they fall. A starting point and not a result of ours.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(choice: str = "t2v_1_3b") -> ConfigDict:
  """The run of distill.py, going on from a student, with a reward.

  Raises:
    ValueError: if there is no such size or machine.
  """
  distill = pathlib.Path(__file__).with_name("distill.py")
  config = runpy.run_path(str(distill))["get_config"](choice)
  config.student = "runs/wan"
  config.steps = 1000
  config.distill.reward_weight = 1.0
  config.reward.update(
    {
      "name": "pickscore",
      "every": 10,
      "warmup_labels": 1024,
      "warmup_steps": 1000,
      "labels": config.data.batch_size,
      "batch_size": config.data.batch_size,
      "capacity": 2048,
      "workers": 2,
    }
  )
  config.reward_optimizer.learning_rate = 1e-4
  config.latent_reward.update({"width": 128, "members": 3, "caution": 1.0})
  config.guard.update(
    {
      "every": 50,
      "samples": 256,
      "watch": ("aesthetic", "motion", "temporal_flickering"),
      "patience": 2,
    }
  )
  return config
