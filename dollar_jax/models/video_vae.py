"""A video autoencoder with its weights: pixels to latents and back.

The one place where a network's latents meet the statistics that make them
of unit variance, and its colours the bytes of a frame.
"""

import dataclasses

import jax
import numpy as np

from dollar_jax.models import cogvideox_vae, wan_vae
from dollar_jax.models.pixels import to_frames, to_signal
from dollar_jax.typing import Array, Params

NETWORKS = {
  wan_vae.WanVAEConfig: wan_vae,
  cogvideox_vae.CogVideoXVAEConfig: cogvideox_vae,
}
"""The module that codes, by the class of its config."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VideoVAE:
  """Frames uint8 [B, F, H, W, 3] ⇄ latents float32 [B, T, h, w, C].

  The same methods as `linear_vae.LinearVAE`.

  Attributes:
    params: the tree of "encoder" and "decoder".
    size: the networks' config, a key of `NETWORKS`.
  """

  params: Params
  size: wan_vae.WanVAEConfig | cogvideox_vae.CogVideoXVAEConfig = (
    dataclasses.field(metadata={"static": True})
  )

  def encode(self, frames: Array) -> Array:
    """uint8 [B, F, H, W, 3] → float32 [B, T, h, w, C], of unit variance.

    Takes the mean of each latent's distribution.

    Raises:
      ValueError: if the clips are not of a size that can be coded.
    """
    if frames.ndim != 5 or frames.shape[-1] != 3:
      raise ValueError(
        f"clips have shape {tuple(frames.shape)}; give frames [B, F, H, W, 3]"
      )
    self.latent_shape(*frames.shape[1:4])  # checks
    network, params = NETWORKS[type(self.size)], self.params["encoder"]
    latents = network.encode(self.size, params, to_signal(frames))
    mean, deviation = self._statistics
    return (latents - mean) / deviation

  def decode_signal(self, latents: Array) -> Array:
    """float32 latents → float32 pixels in about [-1, 1]."""
    mean, deviation = self._statistics
    network = NETWORKS[type(self.size)]
    latents = latents * deviation + mean
    return network.decode(self.size, self.params["decoder"], latents)

  def decode(self, latents: Array) -> Array:
    """float32 [B, T, h, w, C] → uint8 [B, F, H, W, 3]."""
    return to_frames(self.decode_signal(latents))

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, int, int, int]:
    """Shape [T, h, w, C] of the latent of an [F, H, W] clip.

    Raises:
      ValueError: if no whole latent covers such a clip.
    """
    step, side = self.size.frames_per_latent, self.size.pixels_per_latent
    if height % side or width % side or not height or not width:
      raise ValueError(
        f"frames of {height}x{width} do not divide into latents of {side} "
        f"pixels a side; crop them to multiples of {side}"
      )
    if not self.size.codes(frames):
      raise ValueError(
        f"a clip of {frames} frames cannot be coded: give 1 frame and a "
        f"multiple of {step} more, such as {frames // step * step + 1}"
      )
    channels = len(self._statistics[0])
    time = -(-frames // step)
    return time, height // side, width // side, channels

  @property
  def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [C] of the network's own latents."""
    mean, deviation = self.size.statistics
    return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
