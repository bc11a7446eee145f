"""A judge of clips that show one moving digit, fitted to real clips.

Two parts. The digit, in a frame or a clip, is told by kernel ridge regression
on tracked and aligned pictures, and the direction by the track itself: whole
clips are judged worse by a network. A small network that sees the *whole*
clip, so that junk in the background counts, supplies the features for Fréchet
distance and diversity.

The judge is a handful of arrays, kept as safetensors and JSON.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dollar_jax.evaluation import clip_network, diversity, tracking
from dollar_jax.evaluation.clip_network import ClipNetwork
from dollar_jax.typing import Params

EMBEDDED = Path(__file__).parents[1] / "assets" / "judge"
"""The judge of the embedded digits that comes with the package."""

NOTHING = -1
"""What is judged where no digit, or no motion, is seen."""

_RIDGE = 0.05
_REACH = 3.0  # times `shape_threshold` from every real shape is no digit
_FILES = ("judge.safetensors", "judge.json")


@dataclasses.dataclass(frozen=True)
class ClipJudge:
  """Tells digit and direction of a clip, and gives its features.

  Made by `ClipJudge.fit` or `ClipJudge.load`. Frames are uint8
  [N, F, H, W, 3] of the size that it was fitted to.

  Attributes:
    clip_shape: (F, H, W).
    prototypes: float32 [P, S], the different shapes seen in fitting.
    weights: float32 [P, digits], the kernel regression's.
    kernel_width: scale of squared distances in the kernel.
    compass: float32 [directions, 2], unit vectors (down, right).
    params: the network's parameters.
    feature_scale: factor that gives the features mean variance 1 over the
      clips of the fit, so that distances do not depend on the training.
    shape_threshold: see `diversity.shape_threshold`.
  """

  clip_shape: tuple[int, int, int]
  prototypes: np.ndarray
  weights: np.ndarray
  kernel_width: float
  compass: np.ndarray
  params: Params
  feature_scale: float
  shape_threshold: float

  @classmethod
  def fit(
    cls,
    frames: np.ndarray,
    digits: np.ndarray,
    directions: np.ndarray,
    *,
    epochs: int = 6,
    seed: int = 0,
  ) -> "ClipJudge":
    """Fits both parts; 26 processor seconds for 4,000 clips of 8x32x32.

    Args:
      frames: uint8 [N, F, H, W, 3], H and W multiples of 4.
      digits: int [N], 0 and up.
      directions: int [N], 0 and up.
      epochs: passes of the network over the clips.
      seed: seed of the network.

    Raises:
      ValueError: if the arrays do not fit together, H or W is no multiple of
        4, or a digit or direction below the largest is missing.
    """
    frames = _checked(frames)
    if any(side % 4 for side in frames.shape[2:4]):
      raise ValueError(
        f"frames of {frames.shape[2]}x{frames.shape[3]} cannot be judged; "
        "height and width must be multiples of 4"
      )
    digits = _labels("digits", digits, len(frames))
    directions = _labels("directions", directions, len(frames))

    clips = tracking.grey(frames)
    found = tracking.track(clips)
    pictures = tracking.shapes(clips, found).mean(1)
    # one image in many clips is one prototype
    _, first = np.unique(pictures.round(2), axis=0, return_index=True)
    prototypes = _halved(pictures[first])
    width = prototypes.shape[1] * float(prototypes.var())
    kernel = np.exp(-_squares(prototypes, prototypes) / width)
    weights = np.linalg.solve(
      kernel + _RIDGE * np.eye(len(kernel)),
      np.eye(digits.max() + 1)[digits[first]],
    )

    motion = tracking.first_motion(found)
    compass = np.stack(
      [motion[directions == d].mean(0) for d in range(directions.max() + 1)]
    )
    compass /= np.linalg.norm(compass, axis=1, keepdims=True) + 1e-9

    params = clip_network.train(
      ClipNetwork(len(weights[0]), len(compass)),
      _bytes(clips),
      digits,
      directions,
      epochs,
      seed,
    )
    judge = cls(
      clip_shape=clips.shape[1:],
      prototypes=prototypes,
      weights=weights.astype(np.float32),
      kernel_width=width,
      compass=compass.astype(np.float32),
      params=jax.tree.map(_halved, params),
      feature_scale=1.0,
      shape_threshold=diversity.shape_threshold(prototypes, digits[first]),
    )
    spread = judge.features(frames).var(0).mean()
    return dataclasses.replace(judge, feature_scale=float(spread**-0.5))

  def features(self, frames: np.ndarray) -> np.ndarray:
    """Features of whole clips, float32 [N, clip_network.FEATURES]."""
    clips = _bytes(tracking.grey(self._fitting(frames)))
    network = ClipNetwork(self.weights.shape[1], len(self.compass))
    features = clip_network.embed(network, self.params, clips)
    return features * np.float32(self.feature_scale)

  def verdict(self, frames: np.ndarray) -> "Verdict":
    """Everything that tracking tells about clips, in one pass."""
    clips = tracking.grey(self._fitting(frames))
    found = tracking.track(clips)
    pictures = tracking.shapes(clips, found)
    seen = found.visible.sum(1)
    mean = pictures.sum(1) / np.maximum(seen, 1)[:, None]
    # what is seen in few frames only is not seen
    enough = seen > found.visible.shape[1] / 2
    return Verdict(
      digits=np.where(enough, self._read(mean), NOTHING),
      frame_digits=np.where(found.visible, self._read(pictures), NOTHING),
      directions=self._directions(tracking.first_motion(found)),
      shapes=mean,
    )

  def digits(self, frames: np.ndarray) -> np.ndarray:
    """The digit that each clip shows, int [N]; NOTHING for none."""
    return self.verdict(frames).digits

  def frame_digits(self, frames: np.ndarray) -> np.ndarray:
    """The digit that each frame shows, int [N, F]; NOTHING for none."""
    return self.verdict(frames).frame_digits

  def directions(self, frames: np.ndarray) -> np.ndarray:
    """Index of the direction at the start, int [N]; NOTHING if it rests."""
    return self.verdict(frames).directions

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `judge.safetensors` and `judge.json`, about 0.4 MB, into folder.

    Raises:
      OSError: if they cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = traverse_util.flatten_dict(self.params, sep="/")
    tensors = {f"params/{name}": value for name, value in params.items()}
    tensors["prototypes"] = self.prototypes
    tensors = {k: np.asarray(v, np.float16) for k, v in tensors.items()}
    tensors |= {"weights": self.weights, "compass": self.compass}
    settings = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in (*tensors, "params")
    }
    (folder / _FILES[0]).write_bytes(safetensors.numpy.save(tensors))
    (folder / _FILES[1]).write_text(json.dumps(settings, indent=2) + "\n")

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "ClipJudge":
    """Reads what `save` wrote; the judge is the same to the bit.

    Raises:
      ValueError: if the folder holds no judge, or a damaged one.
    """
    arrays, settings = (Path(folder) / name for name in _FILES)
    try:
      tensors = safetensors.numpy.load(arrays.read_bytes())
      tensors = {k: v.astype(np.float32) for k, v in tensors.items()}
      params = traverse_util.unflatten_dict(
        {
          key.removeprefix("params/"): tensors.pop(key)
          for key in list(tensors)
          if key.startswith("params/")
        },
        sep="/",
      )
      fields = json.loads(settings.read_text())
      fields["clip_shape"] = tuple(fields["clip_shape"])
      return cls(params=params, **tensors, **fields)
    except FileNotFoundError as error:
      raise ValueError(
        f"{folder} holds no judge ({Path(error.filename).name} is missing); "
        "make one with ClipJudge.fit(...).save(folder)"
      ) from None
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError):
      raise ValueError(
        f"the judge in {folder} is damaged; make it again with "
        "ClipJudge.fit(...).save(folder)"
      ) from None

  def _fitting(self, frames: np.ndarray) -> np.ndarray:
    frames = _checked(frames)
    if frames.shape[1:4] != self.clip_shape:
      raise ValueError(
        f"clips of {_times(frames.shape[1:4])} cannot be judged by a judge of "
        f"{_times(self.clip_shape)}; fit one to clips of that size"
      )
    return frames

  def _read(self, pictures: np.ndarray) -> np.ndarray:
    """The digits in pictures [..., S]; NOTHING far from all real ones."""
    flat = pictures.reshape(-1, pictures.shape[-1])
    squares = _squares(flat, self.prototypes)
    scores = np.exp(-squares / self.kernel_width) @ self.weights
    near = squares.min(1) <= (_REACH * self.shape_threshold) ** 2
    digits = np.where(near, scores.argmax(1), NOTHING)
    return digits.reshape(pictures.shape[:-1])

  def _directions(self, motion: np.ndarray) -> np.ndarray:
    rests = np.linalg.norm(motion, axis=1) == 0
    return np.where(rests, NOTHING, (motion @ self.compass.T).argmax(1))


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What `ClipJudge.verdict` finds; NOTHING stands for what it does not see.

  Attributes:
    digits: int [N].
    frame_digits: int [N, F].
    directions: int [N].
    shapes: float32 [N, S], the aligned picture, averaged over the frames.
  """

  digits: np.ndarray
  frame_digits: np.ndarray
  directions: np.ndarray
  shapes: np.ndarray


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Squared distances [N, M] between rows; rounding leaves about 1e-6."""
  return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def _bytes(clips: np.ndarray) -> np.ndarray:
  return np.round(clips * 255).astype(np.uint8)


def _halved(values: Any) -> np.ndarray:
  """Rounds to what float16 holds, so that saving changes nothing."""
  return np.asarray(values).astype(np.float16).astype(np.float32)


def _checked(frames: np.ndarray) -> np.ndarray:
  frames = np.asarray(frames)
  good = frames.ndim == 5 and frames.shape[-1] == 3 and len(frames)
  if not good or frames.dtype != np.uint8:
    raise ValueError(
      f"clips of shape {frames.shape} and type {frames.dtype} cannot be "
      "judged; give uint8 [N, F, H, W, 3]"
    )
  return frames


def _labels(name: str, labels: np.ndarray, count: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.shape != (count,):
    raise ValueError(
      f"{name} have shape {labels.shape}; {count} clips need [{count}]"
    )
  missing = sorted(set(range(int(labels.max()) + 1)) - set(labels.tolist()))
  if missing or labels.min() < 0:
    raise ValueError(
      f"{name} range from {labels.min()} to {labels.max()} and lack {missing}; "
      "they must be 0 and up, each with a clip"
    )
  return labels.astype(np.int32)


def _times(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
