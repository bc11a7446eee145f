"""The optimal linear space-time patch autoencoder (PCA), fit from clips.

It stands where a video VAE will: `encode` and `decode` with true latents and
a true decoder, at no training cost. Principal components of patches of
`patch` pixels are the best linear code of that size in squared error.
"""

import dataclasses
from collections.abc import Iterable

import einops
import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.models.pixels import HALF_RANGE, to_frames, to_signal
from dollar_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearVAE:
  """Frames uint8 [B, F, H, W, 3] ⇄ latents float32 [B, T, h, w, C].

  Attributes:
    basis: [patch pixels * 3, C] orthonormal columns.
    mean: [patch pixels * 3] mean patch, pixels in [-1, 1].
    scale: [C] deviation by which each channel is divided.
    patch: frames, rows and columns of pixels under one latent.
  """

  basis: Array
  mean: Array
  scale: Array
  patch: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

  @classmethod
  def fit(
    cls,
    frames: np.ndarray,
    patch: tuple[int, int, int] = (4, 8, 8),
    channels: int = 32,
    whitening: float = 0.5,
  ) -> "LinearVAE":
    """Fits the principal components of the clips' patches.

    Args:
      frames: uint8 [N, F, H, W, 3].
      patch: frames, rows, columns under one latent position.
      channels: C, number of components kept.
      whitening: 0 divides every channel by one common deviation (latent
        distances are pixel distances), 1 each by its own; between, the
        channels' spread is that power of itself.

    Raises:
      ValueError: if the clips do not divide into patches or C is too large.
    """
    patches = _flat_patches(frames, patch).astype(np.float64)
    _check_channels(channels, patches.shape[-1], patch)
    covariance = np.cov(patches, rowvar=False, bias=True)
    mean = patches.mean(axis=0)
    return cls._of_moments(mean, covariance, patch, channels, whitening)

  @classmethod
  def fit_many(
    cls,
    clips: Iterable[np.ndarray],
    patch: tuple[int, int, int] = (4, 8, 8),
    channels: int = 32,
    whitening: float = 0.5,
    patches_per_clip: int = 4096,
  ) -> "LinearVAE":
    """Fits as `fit` does, holding one clip at a time.

    Args:
      clips: uint8 [F, H, W, 3] each.
      patch: see `fit`.
      channels: see `fit`.
      whitening: see `fit`.
      patches_per_clip: how many of a clip are looked at, evenly spread.

    Raises:
      ValueError: as `fit`, and if there is no clip.
    """
    count, total, squares = 0, 0.0, 0.0
    for clip in clips:
      some = _flat_patches(clip[None], patch, patches_per_clip)
      _check_channels(channels, some.shape[-1], patch)
      count += len(some)
      total = total + some.sum(axis=0, dtype=np.float64)
      squares = squares + (some.T @ some).astype(np.float64)
    if not count:
      raise ValueError("there is no clip to fit a codec to; add videos")
    mean = total / count
    covariance = squares / count - np.outer(mean, mean)
    return cls._of_moments(mean, covariance, patch, channels, whitening)

  @classmethod
  def _of_moments(
    cls,
    mean: np.ndarray,
    covariance: np.ndarray,
    patch: tuple[int, int, int],
    channels: int,
    whitening: float,
  ) -> "LinearVAE":
    variance, vectors = np.linalg.eigh(covariance)
    variance = np.maximum(variance[::-1][:channels], 1e-12)
    basis = vectors[:, ::-1][:, :channels]
    # eigh leaves the sign open: make the largest entry of each positive
    largest = np.abs(basis).argmax(axis=0)
    basis = basis * np.sign(basis[largest, np.arange(channels)])
    scale = variance ** (whitening / 2)
    scale = scale * np.sqrt(np.mean(variance / scale**2))
    arrays = (np.asarray(a, np.float32) for a in (basis, mean, scale))
    return cls(*arrays, patch=tuple(patch))

  def encode(self, frames: Array) -> Array:
    """uint8 [B, F, H, W, 3] → float32 [B, F/p, H/q, W/r, C], unit variance.

    Raises:
      ValueError: if the clips are not such an array, or do not divide into
        patches.
    """
    return self.encode_patches(self.patchify(frames))[0]

  def patchify(self, frames: Array) -> Array:
    """uint8 [B, F, H, W, 3] → uint8 [B, F/p, H/q, W/r, patch pixels * 3].

    On a CPU NumPy does this in a quarter of XLA's time.

    Raises:
      ValueError: as `encode`.
    """
    return _patchify(frames, self.patch)

  def encode_patches(self, patches: Array) -> tuple[Array, Array]:
    """The other half of `encode`, and what it loses.

    Args:
      patches: uint8 [..., T, h, w, patch pixels * 3], see `patchify`.

    Returns:
      (latents float32 [..., T, h, w, C], mean squared error [...] of the pixels
      that they decode to, in grey levels, before these are clipped and
      rounded). As the basis is orthonormal, that is what the latents lack of
      the patches' squares: nothing is decoded.
    """
    centred = to_signal(patches) - self.mean
    components = centred @ self.basis
    lost = (centred**2).sum(-1) - (components**2).sum(-1)
    error = lost.mean((-3, -2, -1)) * HALF_RANGE**2 / centred.shape[-1]
    return components / self.scale, jnp.maximum(error, 0.0)

  def decode_signal(self, latents: Array) -> Array:
    """float32 latents → float32 pixels in about [-1, 1], not clipped."""
    pixels = (latents * self.scale) @ self.basis.T + self.mean
    i, j, k = self.patch
    return einops.rearrange(
      pixels,
      "b t h w (i j k c) -> b (t i) (h j) (w k) c",
      i=i,
      j=j,
      k=k,
      c=3,
    )

  def decode(self, latents: Array) -> Array:
    """float32 [B, T, h, w, C] → uint8 [B, F, H, W, 3]."""
    return to_frames(self.decode_signal(latents))

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, int, int, int]:
    """Shape [T, h, w, C] of the latent of an [F, H, W] clip.

    Raises:
      ValueError: if the clip does not divide into patches.
    """
    _check_divides((frames, height, width), self.patch)
    i, j, k = self.patch
    return frames // i, height // j, width // k, self.basis.shape[1]

  def psnr(self, frames: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of `decode(encode(frames))`."""
    back = jax.jit(lambda x: self.decode(self.encode(x)))(jnp.asarray(frames))
    error = np.asarray(back, np.float64) - np.asarray(frames, np.float64)
    with np.errstate(divide="ignore"):  # a perfect copy is at infinity
      return float(10 * np.log10(255.0**2 / np.mean(error**2)))

  @property
  def config(self) -> dict:
    """What config.json holds beside the arrays."""
    return {"patch": list(self.patch), "channels": self.basis.shape[1]}

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """What the safetensors file holds."""
    names = ("basis", "mean", "scale")
    return {name: np.asarray(getattr(self, name)) for name in names}

  @classmethod
  def from_arrays(cls, config: dict, arrays: dict) -> "LinearVAE":
    """Rebuilds a codec from `config` and `arrays`."""
    return cls(**arrays, patch=tuple(config["patch"]))


def _flat_patches(
  frames: np.ndarray, patch: tuple, most: int | None = None
) -> np.ndarray:
  """float32 signal [patches, pixels * 3] of clips, of `most` evenly spread."""
  patches = _patchify(frames, patch)
  patches = patches.reshape(-1, patches.shape[-1])
  if most is not None:
    patches = patches[:: -(-len(patches) // most)]
  return np.asarray(to_signal(patches))


def _check_channels(channels: int, most: int, patch: tuple) -> None:
  if not 1 <= channels <= most:
    raise ValueError(
      f"latent channels is {channels}; patches of {patch} hold 1 to {most}"
    )


def _check_divides(sizes: tuple, patch: tuple) -> None:
  if any(size % p for size, p in zip(sizes, patch, strict=True)):
    raise ValueError(
      f"a clip of {tuple(sizes)} (frames, height, width) does not divide into "
      f"patches of {tuple(patch)}; crop it to multiples"
    )


def _patchify(pixels: Array, patch: tuple[int, int, int]) -> Array:
  if pixels.ndim != 5 or pixels.shape[-1] != 3:
    raise ValueError(
      f"clips have shape {tuple(pixels.shape)}; give frames [B, F, H, W, 3]"
    )
  _check_divides(pixels.shape[1:4], patch)
  i, j, k = patch
  return einops.rearrange(
    pixels,
    "b (t i) (h j) (w k) c -> b t h w (i j k c)",
    i=i,
    j=j,
    k=k,
  )
