"""Memory that decoding a clip of 192x320 takes, by the clip's length.

  python benchmarks/decode_memory.py [--frames 33 65 129]

Autoencoders of the published sizes, in float32, compiled for this machine and
not run: XLA's own account of the buffers between latents and frames. Clips are
decoded a latent frame or two at a time, so that it does not grow with them.
"""

import argparse

import jax
import jax.numpy as jnp

from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.video_vae import NETWORKS, VideoVAE
from dollar_jax.models.wan_vae import WanVAEConfig

AUTOENCODERS = {
  "AutoencoderKLWan (2.1)": WanVAEConfig(),
  "AutoencoderKLCogVideoX": CogVideoXVAEConfig(),
}
HEIGHT, WIDTH = 192, 320


def measure(
  config: WanVAEConfig | CogVideoXVAEConfig, frames: int
) -> dict[str, int]:
  """Bytes of the decoded pixels, and of all that lies between."""
  codec = VideoVAE(NETWORKS[type(config)].shapes(config), config)
  latents = (1, *codec.latent_shape(frames, HEIGHT, WIDTH))
  compiled = (
    jax.jit(VideoVAE.decode)
    .lower(codec, jax.ShapeDtypeStruct(latents, jnp.float32))
    .compile()
  )
  memory = compiled.memory_analysis()
  return {
    "latents": memory.argument_size_in_bytes,
    "frames": memory.output_size_in_bytes,
    "between": memory.temp_size_in_bytes,
  }


def main(args: argparse.Namespace) -> None:
  """Prints a row for every autoencoder and length."""
  print("autoencoder              frames  frames (MB)  between (MB)")
  for name, config in AUTOENCODERS.items():
    for frames in args.frames:
      found = measure(config, frames)
      print(
        f"{name:<25}{frames:6}{found['frames'] / 1e6:13.1f}"
        f"{found['between'] / 1e6:14.1f}",
        flush=True,
      )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--frames", type=int, nargs="+", default=[33, 65, 129])
  main(parser.parse_args())
