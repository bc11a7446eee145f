"""Tunes a 4-step student to what people preferred of its clips.

  dollar train --config=configs/digits/student.py --workdir=runs/student
  dollar sample --model=runs/student --prompts=prompts.txt --out=runs/one
  dollar sample --model=runs/student --prompts=prompts.txt --out=runs/two \
    --seed=1
  dollar study --a=runs/one --b=runs/two --out=runs/study
  dollar train --config=configs/digits/reward_votes.py --workdir=runs/voted \
    --config.student=runs/student --config.reward.votes="('votes.json',)"

There are no new votes while the student moves, so a guard looks at what it can.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The run of reward.py with votes."""
  reward = pathlib.Path(__file__).with_name("reward.py")
  config = runpy.run_path(str(reward))["get_config"]()
  config.reward.name, config.reward.votes = "votes", ("votes.json",)
  config.guard.update(
    {
      "every": 20,
      "samples": 256,
      "watch": ("caption_accuracy", "temporal_flickering"),
      "features": "digits",
    }
  )
  return config
