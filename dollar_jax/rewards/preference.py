"""Rewards that have learnt what people like: PickScore, HPSv2, aesthetics.

Each is a CLIP whose weights the user has, in safetensors: where the variable
says, else in the Hugging Face cache. Nothing is downloaded.

reward      variable           published as
pickscore   DOLLAR_PICKSCORE   yuvalkirstain/PickScore_v1
hpsv2       DOLLAR_HPSV2       adams-story/HPSv2-hf (xswu/HPSv2 is a pickle)
aesthetic   DOLLAR_AESTHETIC   shunk031/aesthetics-predictor-v2-…, the head;
                               openai/clip-vit-large-patch14 below it

`torch_reward` makes a reward of any other network that PyTorch runs.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dollar_jax.interop.clip import open_tensors
from dollar_jax.interop.folders import check_source, read_json
from dollar_jax.models.clip import CLIP, VIT_H_14, normalize
from dollar_jax.models.clip_images import letterbox, preprocess
from dollar_jax.rewards.base import (
  Differentiable,
  MakeDifferentiable,
  RewardFn,
  no_condition,
  register,
)
from dollar_jax.rewards.clip_features import (
  PrepareFn,
  clip_features,
  clip_shapes,
)
from dollar_jax.typing import Array, PyTree

FRAMES = 4
"""Frames of a clip that are judged: each costs a third of a TFLOP in a ViT-H/14
and looks much like its neighbours, so that more hardly move the mean."""

VISION = "openai/clip-vit-large-patch14"
"""The CLIP whose features the head of `aesthetic` reads."""

HEAD_LAYERS = (0, 2, 4, 6, 7)
"""Where that head's `layers` have weights: LAION's MLP 768-1024-128-64-16-1,
whose other layers are dropout."""


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the weights of a reward are.

  Attributes:
    reward: its name.
    variable: the environment's, a folder or a .safetensors file.
    published: its name on the Hugging Face hub.
  """

  reward: str
  variable: str
  published: str

  def find(self) -> Path:
    """The folder or file.

    Raises:
      ValueError: if there is none.
    """
    if named := os.environ.get(self.variable):
      path = Path(named).expanduser()
      if not path.exists():
        raise ValueError(
          f"{self.variable} is {named}, which does not exist; set it to a "
          "folder or a .safetensors file"
        )
      return path
    try:
      return check_source(self.published)
    except ValueError:
      raise ValueError(
        f"reward {self.reward!r} has no weights: {self.variable} is not set "
        f"and the Hugging Face cache has no {self.published}; run `hf download "
        f"{self.published}`, or set {self.variable} to a folder or a "
        ".safetensors file"
      ) from None


PICKSCORE = Source(
  "pickscore", "DOLLAR_PICKSCORE", "yuvalkirstain/PickScore_v1"
)
HPSV2 = Source("hpsv2", "DOLLAR_HPSV2", "adams-story/HPSv2-hf")
AESTHETIC = Source(
  "aesthetic",
  "DOLLAR_AESTHETIC",
  "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
)


def _through_clip(
  source: Source, prepare: PrepareFn, scaled: bool
) -> MakeDifferentiable:
  """How frames that fit their prompts are differentiated."""

  def make(dtype: str, shapes: bool) -> Differentiable:
    if shapes:
      config, params = VIT_H_14, clip_shapes(VIT_H_14)
      condition = no_condition  # nobody asks
    else:
      network = clip_features(source.find(), prepare=prepare)
      config, condition = network.config, network.read
      params = network.params
    module = CLIP(dataclasses.replace(config, dtype=dtype))

    def fn(params: PyTree, pixels: Array, conditions: Array) -> Array:
      size = config.vision_config.image_size
      images = prepare(pixels.reshape(-1, *pixels.shape[2:]), size)
      features = normalize(
        module.apply({"params": params}, images, method="image_features")
      ).reshape(*pixels.shape[:2], -1)
      cosines = jnp.mean(jnp.einsum("bfp,bp->bf", features, conditions), axis=1)
      scale = params["logit_scale"].astype("float32")
      return jnp.exp(scale) * cosines if scaled else cosines

    needed = {name: params[name] for name in ("vision", "logit_scale")}
    return Differentiable(needed, fn, condition, config.projection_dim)

  return make


@register(
  "pickscore",
  kind="image",
  prompted=True,
  num_frames=FRAMES,
  differentiable=_through_clip(PICKSCORE, preprocess, scaled=True),
)
def pickscore(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """PickScore, mean over four frames.

  exp(logit_scale) cos(text, image) of a CLIP ViT-H/14 tuned on which of two
  images a person picked (arXiv 2305.01569, Eq. 1), as its model card computes
  it: 100 times a cosine, about 17 to 24.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: B strings; past 77 tokens they are cut.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the weights or transformers are missing.
  """
  network = clip_features(PICKSCORE.find())
  return network.logit_scale * network.fit(frames, prompts)


@register(
  "hpsv2",
  kind="image",
  prompted=True,
  num_frames=FRAMES,
  differentiable=_through_clip(HPSV2, letterbox, scaled=False),
)
def hpsv2(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """Human Preference Score v2, mean over four frames.

  cos(text, image) of a CLIP ViT-H/14 tuned on which of two images a person
  preferred (arXiv 2306.09341), as the package `hpsv2` computes it, but in
  float32 where that runs in half precision: of whole frames, with black where
  they are not square (`letterbox`). Versions 2.0 and 2.1 differ in their
  weights alone.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: B strings; past 77 tokens they are cut.

  Returns:
    float32 [B], in [-1, 1].

  Raises:
    ValueError: if the weights or transformers are missing.
  """
  return clip_features(HPSV2.find(), prepare=letterbox).fit(frames, prompts)


@register("aesthetic", kind="image", num_frames=FRAMES)
def aesthetic(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
  """LAION's aesthetic score, mean over four frames: about 1 to 10.

  Five linear layers on the features of CLIP ViT-L/14, scaled to length 1
  (github.com/christophschuhmann/improved-aesthetic-predictor). If the folder
  with the head has a CLIP's config.json that CLIP is used, else `VISION` in
  the Hugging Face cache.

  Args:
    frames: uint8 [B, F, H, W, 3].
    prompts: not read.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the weights are missing, or head and CLIP do not fit.
  """
  del prompts
  path = AESTHETIC.find()
  network = clip_features(_vision_of(path), texts=False)
  score = network.look(frames)
  for kernel, bias in _head(path, score.shape[-1]):
    score = score @ kernel + bias
  return score[..., 0].mean(axis=1, dtype=np.float32)


def torch_reward(module: Any, batch_size: int = 8) -> RewardFn:
  """Makes a reward of a network that PyTorch runs.

      reward = torch_reward(MyNetwork.from_pretrained("folder"))

  in a module of your own is the reward "MODULE:reward".

  Args:
    module: a `torch.nn.Module` that maps clips float32 [b, F, 3, H, W] in
      [0, 1] to scores [b] or [b, 1]. It runs on the device its parameters are
      on, in evaluation mode and without gradients.
    batch_size: clips in one call, b at most.

  Returns:
    `fn(frames uint8 [B, F, H, W, 3], prompts) -> float32 [B]`, which does not
    read the prompts. It raises a ValueError if the module gives another shape.

  Raises:
    ValueError: if `batch_size` is less than 1.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

  def fn(frames: np.ndarray, prompts: list[str]) -> np.ndarray:
    import torch

    del prompts
    weight = next(module.parameters(), torch.empty(0))
    module.eval()
    scores = []
    for start in range(0, len(frames), batch_size):
      some = np.moveaxis(frames[start : start + batch_size], -1, 2)
      clips = torch.from_numpy(np.ascontiguousarray(some)).to(weight.device)
      with torch.inference_mode():
        out = module(clips.float() / 255)
      if tuple(out.shape) not in ((len(some),), (len(some), 1)):
        raise ValueError(
          f"{type(module).__name__} gave scores of shape {tuple(out.shape)} "
          f"for {len(some)} clips; make it return one number a clip"
        )
      scores.append(out.reshape(-1).float().cpu().numpy())
    return np.concatenate(scores)

  return fn


def _vision_of(path: Path) -> Path:
  """The CLIP that belongs to a head.

  Raises:
    ValueError: if there is none.
  """
  folder = path if path.is_dir() else path.parent
  file = folder / "config.json"
  if file.is_file() and "vision_config" in read_json(file):
    return folder
  try:
    return check_source(VISION)
  except ValueError:
    raise ValueError(
      f"reward 'aesthetic' has a head, {path}, and no CLIP: the Hugging Face "
      f"cache has no {VISION}; run `hf download {VISION}`, or lay its "
      "config.json and model.safetensors beside the head"
    ) from None


@functools.cache
def _head(path: Path, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Kernels [n, m] and biases [m] of the layers, from `width` to 1.

  Raises:
    ValueError: if they are not those of such a head.
  """
  tensors, layers = open_tensors(path), []
  for i in HEAD_LAYERS:
    for part in ("weight", "bias"):
      if f"layers.{i}.{part}" not in tensors:
        raise ValueError(
          f"{path} has no layers.{i}.{part}, so it is not LAION's aesthetic "
          "head; give sac+logos+ava1-l14-linearMSE as safetensors"
        )
    kernel, bias = (
      np.asarray(tensors[f"layers.{i}.{part}"]).astype(np.float32).T
      for part in ("weight", "bias")
    )
    wanted = 1 if i == HEAD_LAYERS[-1] else kernel.shape[-1]
    if kernel.shape != (width, wanted) or bias.shape != (wanted,):
      raise ValueError(
        f"layers.{i} of {path} maps {kernel.shape[0]} numbers to "
        f"{kernel.shape[-1]}, expected {width} to {wanted}; use the head of "
        "the CLIP that it was trained on"
      )
    layers.append((kernel, bias))
    width = wanted
  return layers
