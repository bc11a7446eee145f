"""Distils a CogVideoX text-to-video model into a 4-step student: VSD + 0.5 CD.

  dollar train --config=configs/cogvideox/distill.py:v5e \\
    --workdir=runs/cogvideox --config.data.source=DIR

The teacher, CogVideoX-5b of the Hugging Face cache, is the nearest public kin
of the paper's (v-prediction, zero terminal signal, 50 DDIM steps); another is
--config.teacher=FOLDER, of CogVideoX-2b or CogVideoX1.5-5B too. DIR holds
prepared latents, which say how large the clips are. After the colon stands, for
more than one device, the machine: v5e (16x16 chips), v5p (4x4x4) or h100 (8
hosts of 8), see docs/plans.md.

Guidance 6, score times without a shift and 10,000 updates are those of FastGen
for the 5B, the learning rate is its for VSD: a starting point and not a result
of ours.
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete

MACHINES = {  # mesh, batch size, microbatches
  "": ({}, 64, 1),
  "v5e": ({"fsdp": 32, "context": 4}, 256, 4),
  "v5p": ({"fsdp": 16}, 256, 4),
  "h100": ({"fsdp": 8}, 256, 4),
}
"""A group of `context` devices shares each video. The batch is four videos a
group, as many as the student's steps, so that no device waits in rollouts."""


def get_config(machine: str = "") -> ConfigDict:
  """The run of any size, on one device or on a machine.

  Raises:
    ValueError: if there is no strategy for it.
  """
  if machine not in MACHINES:
    raise ValueError(
      f"machine {machine!r} is unknown; use one of {sorted(MACHINES)}"
    )
  mesh, batch_size, accumulate = MACHINES[machine]
  optimizer = {
    "learning_rate": 1e-5,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "clip_norm": 10.0,
    "accumulate": accumulate,
  }
  return complete(
    {
      "task": "distill",
      "teacher": "THUDM/CogVideoX-5b",
      "steps": 10_000,
      "dtype": "bfloat16",
      "frozen_dtype": "bfloat16",
      "remat": "full",
      "mesh": mesh,
      "data": {
        "source": "data/cogvideox",
        "batch_size": batch_size,
        "clip": (128, 192, 320),
      },
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
