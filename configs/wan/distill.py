"""Distils a Wan text-to-video model into a 4-step student: VSD + 0.5 CD.

  dollar train --config=configs/wan/distill.py:t2v_1_3b,v5e \\
    --workdir=runs/wan --config.data.source=DIR

After the colon stands the size: t2v_1_3b and t2v_14b (Wan 2.1), ti2v_5b and
t2v_a14b (Wan 2.2; both experts are distilled); behind the comma, for more than
one device, the machine: v5e (16x16 chips), v5p (4x4x4) or h100 (8 hosts of 8),
see docs/plans.md. DIR holds prepared latents. The teacher is that of the
Hugging Face cache; --config.teacher=FOLDER takes another.

Learning rates, guidance, batch and score times are those that others have
published for VSD on these models, a starting point and not a result of ours:
FastGen (1.3B: 1e-5, guidance 5, batch 64, 6,000 updates), FastVideo (5B: 4e-6
and 2e-6 for the score, guidance 4, 4,000 updates), rCM (14B: 1e-6 and 1e-7,
guidance 5, ten score updates). The grid (1, 0.94, 0.83, 0.63) is FastGen's.
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete

SIZES = {
  "t2v_1_3b": {
    "teacher": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "learning_rates": (1e-5, 1e-5),
    "steps": 6000,
  },
  "t2v_14b": {
    "teacher": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "learning_rates": (1e-6, 1e-7),
    "score_steps": 10,
  },
  "ti2v_5b": {
    "teacher": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "learning_rates": (4e-6, 2e-6),
    "guidance": 4.0,
    "clip": (121, 704, 1280),
  },
  "t2v_a14b": {
    "teacher": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "learning_rates": (1e-6, 1e-7),
    "guidance": 4.0,
  },
}

MACHINES = {  # mesh, batch size, microbatches
  "": ({}, 64, 1),
  "v5e": ({"fsdp": 16, "context": 4}, 256, 4),
  "v5p": ({"fsdp": 16, "context": 4}, 64, 4),
  "h100": ({"fsdp": 16, "context": 4}, 64, 4),
}
"""A group of `context` devices shares each video. The batch is four videos a
group, as many as the student's steps, so that no device waits in rollouts."""


def get_config(choice: str = "t2v_1_3b") -> ConfigDict:
  """The run of one size on one machine, "SIZE" or "SIZE,MACHINE".

  Raises:
    ValueError: if there is no such size or machine.
  """
  size, _, machine = choice.partition(",")
  for name, known in ((size, SIZES), (machine, MACHINES)):
    if name not in known:
      raise ValueError(f"{name!r} is unknown; use one of {sorted(known)}")
  choice, (mesh, batch_size, accumulate) = SIZES[size], MACHINES[machine]
  student_rate, score_rate = choice["learning_rates"]
  return complete(
    {
      "task": "distill",
      "teacher": choice["teacher"],
      "steps": choice.get("steps", 4000),
      "dtype": "bfloat16",
      "frozen_dtype": "bfloat16",
      "remat": "full",
      "mesh": mesh,
      "data": {
        "source": "data/wan",
        "batch_size": batch_size,
        "clip": choice.get("clip", (81, 480, 832)),
      },
      "optimizer": {
        "learning_rate": student_rate,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "clip_norm": 10.0,
        "ema": 0.98,
        "accumulate": accumulate,
      },
      "score_optimizer": {
        "learning_rate": score_rate,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "clip_norm": 10.0,
        "accumulate": accumulate,
      },
      "distill": {
        "num_steps": 4,
        "grid_shift": 5.0,
        "inputs": "simulate",
        "guidance": choice.get("guidance", 5.0),
        "score_steps": choice.get("score_steps", 5),
        "time_low": 0.02,
        "time_high": 0.98,
      },
      "checkpoint": {"every": 250},
    }
  )
