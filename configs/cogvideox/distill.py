"""Distils a CogVideoX text-to-video model into a 4-step student: VSD + 0.5 CD.

  dollar train --config=configs/cogvideox/distill.py --workdir=runs/cogvideox \\
    --config.teacher=CogVideoX-5b --config.data.source=DIR

The teacher may be CogVideoX-2b, CogVideoX-5b or CogVideoX1.5-5B; it is the
nearest public kin of the paper's (v-prediction, zero terminal signal, 50 DDIM
steps). DIR holds prepared latents, which say how large the clips are.

Guidance 6, score times without a shift and 10,000 updates are those of FastGen
for the 5B, the learning rate is its for VSD: a starting point and not a result
of ours.
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete


def get_config() -> ConfigDict:
  """The run of any size."""
  optimizer = {
    "learning_rate": 1e-5,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "clip_norm": 10.0,
  }
  return complete(
    {
      "task": "distill",
      "teacher": "",
      "steps": 10_000,
      "dtype": "bfloat16",
      "frozen_dtype": "bfloat16",
      "remat": "full",
      "data": {"source": "", "batch_size": 64},
      "optimizer": optimizer | {"ema": 0.98},
      "score_optimizer": optimizer,
      "distill": {
        "num_steps": 4,
        "inputs": "simulate",
        "guidance": 6.0,
        "score_steps": 5,
        "time_low": 0.02,
        "time_high": 0.98,
      },
      "checkpoint": {"every": 250},
    }
  )
