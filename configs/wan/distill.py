"""Distils a Wan text-to-video model into a 4-step student: VSD + 0.5 CD.

  dollar train --config=configs/wan/distill.py:t2v_1_3b --workdir=runs/wan \\
    --config.teacher=Wan2.1-T2V-1.3B-Diffusers --config.data.source=DIR

After the colon stands the size: t2v_1_3b and t2v_14b (Wan 2.1), ti2v_5b and
t2v_a14b (Wan 2.2; both experts are distilled). DIR holds prepared latents,
which say how large the clips are.

Learning rates, guidance, batch and score times are those that others have
published for VSD on these models, a starting point and not a result of ours:
FastGen (1.3B: 1e-5, guidance 5, batch 64, 6,000 updates), FastVideo (5B: 4e-6
and 2e-6 for the score, guidance 4, 4,000 updates), rCM (14B: 1e-6 and 1e-7,
guidance 5, ten score updates). The grid (1, 0.94, 0.83, 0.63) is FastGen's.
"""

from ml_collections import ConfigDict

from dollar_jax.train.config import complete

SIZES = {
  "t2v_1_3b": {"learning_rates": (1e-5, 1e-5), "steps": 6000},
  "t2v_14b": {"learning_rates": (1e-6, 1e-7), "score_steps": 10},
  "ti2v_5b": {"learning_rates": (4e-6, 2e-6), "guidance": 4.0},
  "t2v_a14b": {"learning_rates": (1e-6, 1e-7), "guidance": 4.0},
}


def get_config(size: str = "t2v_1_3b") -> ConfigDict:
  """The run of one size.

  Raises:
    ValueError: if there is no such size.
  """
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use one of {sorted(SIZES)}")
  choice = SIZES[size]
  student_rate, score_rate = choice["learning_rates"]
  return complete(
    {
      "task": "distill",
      "teacher": "",
      "steps": choice.get("steps", 4000),
      "dtype": "bfloat16",
      "frozen_dtype": "bfloat16",
      "remat": "full",
      "data": {"source": "", "batch_size": 64},
      "optimizer": {
        "learning_rate": student_rate,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "clip_norm": 10.0,
        "ema": 0.98,
      },
      "score_optimizer": {
        "learning_rate": score_rate,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "clip_norm": 10.0,
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
