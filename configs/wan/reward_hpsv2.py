"""Tunes a 4-step Wan student to HPSv2 through the latent reward model.

  dollar train --config=configs/wan/reward_hpsv2.py:t2v_1_3b,v5e \\
    --workdir=runs/wan-hpsv2 --config.student=runs/wan --config.data.source=DIR

All is as in reward_pickscore.py but the reward, whose weights are
adams-story/HPSv2-hf of the Hugging Face cache, or what DOLLAR_HPSV2 names.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(choice: str = "t2v_1_3b") -> ConfigDict:
  """The run of reward_pickscore.py with another reward.

  Raises:
    ValueError: if there is no such size or machine.
  """
  pickscore = pathlib.Path(__file__).with_name("reward_pickscore.py")
  config = runpy.run_path(str(pickscore))["get_config"](choice)
  config.reward.name = "hpsv2"
  return config
