"""Times the video autoencoders; prints seconds as JSON.

Runs in the checkout of any revision: `benchmarks.against_release` calls it.
"""

import json
import time

try:
  from dollar_jax import startup

  startup.prepare()  # as the command does
except ImportError:
  pass
import functools

import jax
import numpy as np

from dollar_jax.models import cogvideox_vae, wan_vae

CASES = {
  **{
    f"Wan VAE, base {base}, 9x{side}x{side}": (
      wan_vae,
      wan_vae.WanVAEConfig(base_dim=base),
      side,
    )
    for base, side in ((16, 96), (48, 128), (96, 96))
  },
  "CogVideoX VAE, 9x64x64": (
    cogvideox_vae,
    cogvideox_vae.CogVideoXVAEConfig(),
    64,
  ),
}


def main() -> None:
  """Decodes and encodes random clips."""
  random = np.random.default_rng(0)
  found = {}
  for name, (room, config, side) in CASES.items():
    params = jax.tree.map(
      lambda s: random.normal(0, 0.02, s.shape).astype(np.float32),
      room.shapes(config),
    )
    latents = random.normal(size=(1, 3, side // 8, side // 8, 16))
    frames = random.uniform(-1, 1, (1, 9, side, side, 3))
    for verb, x in {"decode": latents, "encode": frames}.items():
      run = jax.jit(functools.partial(getattr(room, verb), config))
      x, own = x.astype(np.float32), params[f"{verb}r"]
      jax.block_until_ready(run(own, x))
      seconds = []
      for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(run(own, x))
        seconds.append(time.perf_counter() - began)
      found[f"{name}: {verb}, s"] = float(np.median(seconds))
  print(json.dumps(found))


if __name__ == "__main__":
  main()
