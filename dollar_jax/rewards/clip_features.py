"""CLIP on the device, for the rewards that ask it: loaded once, in batches."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.interop.clip import load_clip, load_tokenizer
from dollar_jax.models.clip import CLIP, CLIPConfig, normalize
from dollar_jax.models.clip_images import preprocess
from dollar_jax.typing import Array, PyTree

BATCH = 16
"""Images, or texts, in one call of a network; fewer are filled up, so that it
is compiled once."""

PrepareFn = Callable[[Array, int], Array]
"""Frames [B, H, W, 3] and a size → pixels float32 [B, size, size, 3]."""


class CLIPFeatures:
  """A CLIP on the device, called with batches of one size.

  Attributes:
    config: its sizes.
    params: its weights.
    logit_scale: what its cosines are multiplied by.
  """

  def __init__(self, path: Path, texts: bool, prepare: PrepareFn):
    """Reads the weights; without `texts` those of that tower are dropped."""
    self.config, params = config, params = load_clip(path)
    self.logit_scale = np.exp(np.float32(params["logit_scale"]))
    self._tokenize = None
    if texts:
      folder = path if path.is_dir() else path.parent
      length = config.text_config.max_position_embeddings
      self._tokenize = load_tokenizer(folder, length)
    else:
      params = {k: v for k, v in params.items() if k != "text"}
    self.params = jax.device_put(params)
    module, size = CLIP(config), config.vision_config.image_size
    # apart, so that frames of another size do not compile the network anew
    self._prepare = jax.jit(lambda frames: prepare(frames, size))
    self._see, self._read = (
      jax.jit(
        lambda p, x, m=m: normalize(module.apply({"params": p}, x, method=m))
      )
      for m in ("image_features", "text_features")
    )

  def look(self, frames: np.ndarray) -> np.ndarray:
    """Features [B, F, P], of length 1, of frames [B, F, H, W, 3]."""
    images = frames.reshape(-1, *frames.shape[2:])
    features = _in_batches(
      lambda x: self._see(self.params, self._prepare(x)), images
    )
    return features.reshape(*frames.shape[:2], -1)

  def read(self, prompts: list[str]) -> np.ndarray:
    """Features [B, P], of length 1, of prompts."""
    ids = self._tokenize(prompts)
    return _in_batches(lambda x: self._read(self.params, x), ids)

  def fit(self, frames: np.ndarray, prompts: list[str]) -> np.ndarray:
    """Cosines [B] of prompts and frames [B, F, H, W, 3], mean over frames."""
    cosines = np.einsum("bfp,bp->bf", self.look(frames), self.read(prompts))
    return cosines.mean(axis=1, dtype=np.float32)


_LOADING = threading.Lock()


def clip_features(
  path: Path, texts: bool = True, prepare: PrepareFn = preprocess
) -> CLIPFeatures:
  """The network at a path, loaded once, also if threads ask together."""
  with _LOADING:
    return _load(path, texts, prepare)


@functools.cache
def _load(path: Path, texts: bool, prepare: PrepareFn) -> CLIPFeatures:
  return CLIPFeatures(path, texts, prepare)


def clip_shapes(config: CLIPConfig) -> PyTree:
  """Shapes of the parameters of a CLIP."""
  size = config.vision_config.image_size
  pixels, ids = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 1), jnp.int32)
  key = jax.random.key(0)
  found = jax.eval_shape(CLIP(config).init, key, pixels, ids)
  return nn.meta.unbox(found)["params"]


def _in_batches(
  fn: Callable[[np.ndarray], Array], rows: np.ndarray
) -> np.ndarray:
  """Calls `fn` with `BATCH` rows at a time, the last of them repeated."""
  out = []
  for start in range(0, len(rows), BATCH):
    some = rows[start : start + BATCH]
    fill = np.repeat(some[-1:], BATCH - len(some), axis=0)
    out.append(np.asarray(fn(np.concatenate([some, fill])))[: len(some)])
  return np.concatenate(out)
