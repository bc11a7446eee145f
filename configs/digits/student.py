"""Distils the embedded teacher into a 4-step student: VSD + 0.5 CD.

  dollar train --config=configs/digits/student.py --workdir=runs/student

One step: add --config.distill.num_steps=1 --config.distill.time_low=0.4.
Consistency alone comes first, and the fake score learns where the student then
is: VSD starts from clips that overlap the teacher's. docs/digits.md says what
each setting does.
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete


def get_config() -> ConfigDict:
  """The run of `dollar demo` for its 4-step student."""
  return complete(
    {
      "task": "distill",
      "teacher": "embedded",
      "student": "",
      "steps": 220,
      "seed": 0,
      "log_every": 5,
      "scan": False,
      "data": {"source": "moving_digits", "batch_size": 32, "clips": 4000},
      "optimizer": {
        "learning_rate": 3e-4,
        "warmup_steps": 10,
        "schedule": "cosine",
        "ema": 0.99,
      },
      "score_optimizer": {"learning_rate": 6e-4, "warmup_steps": 10},
      "distill": {
        "num_steps": 4,
        "grid_shift": 5.0,
        "inputs": "simulate",
        "fresh_noise": 0.4,
        "guidance": 1.5,
        "vsd_weight": 1.0,
        "cd_weight": 0.5,
        "reward_weight": 0.0,
        "score_steps": 5,
        "cd_warmup": 50,
        "score_warmup": 60,
        "time_low": 0.25,
        "cd_grid": 50,
        "cd_jump": 5,
        "huber": 0.05,
      },
      "checkpoint": {"every": 100},
    }
  )
