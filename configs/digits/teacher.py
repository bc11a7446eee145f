"""Trains the embedded teacher: a 1.2 M-parameter Wan on moving digits.

dollar train --config=configs/digits/teacher.py --workdir=runs/teacher
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete


def get_config() -> ConfigDict:
  """The run that made dollar_jax/assets/digits."""
  return complete(
    {
      "task": "teacher",
      "steps": 4000,
      "seed": 0,
      "log_every": 50,
      "scan": False,
      "model": {
        "patch_size": (1, 1, 1),
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "in_channels": 32,
        "out_channels": 32,
        "text_dim": 64,
        "freq_dim": 128,
        "ffn_dim": 512,
        "num_layers": 4,
      },
      "data": {
        "source": "moving_digits",
        "batch_size": 64,
        "clips": 16000,
        "channels": 32,
        "whitening": 0.5,
      },
      "optimizer": {
        "name": "muon",
        "learning_rate": 4e-3,
        "warmup_steps": 200,
        "schedule": "cosine",
        "b1": 0.95,
        "ema": 0.999,
      },
      "checkpoint": {"every": 500},
    }
  )
