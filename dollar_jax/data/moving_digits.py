"""Real handwritten digits that move and bounce: the embedded video data.

scikit-learn carries 1,797 handwritten digits of 8x8 pixels (UCI, E. Alpaydin
and C. Kaynak). Each clip shows one, enlarged to 16x16, that starts on a grid of
8 pixels, moves two pixels a frame in a 32x32 frame and bounces off its walls,
white on black, 8 frames. Digit images are split, so that no test image is ever
trained on.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

DIRECTIONS = ("left", "right", "up", "down")
FRAMES = 8
SIZE = 32
FPS = 8

_DIGIT = 16  # pixels of an enlarged digit
_STEP = 2  # pixels a frame
_GRID = 8  # pixels between the places where a clip may start
_TEST_SHARE = 0.2
COMPASS = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
"""Row and column of a step in each of `DIRECTIONS`."""


@dataclasses.dataclass(frozen=True)
class Clips:
  """A set of clips with what they show.

  Attributes:
    frames: uint8 [N, 8, 32, 32, 3].
    digits: int [N], 0-9.
    directions: int [N], index in `DIRECTIONS`: the motion at the start.
    captions: N sentences.
  """

  frames: np.ndarray
  digits: np.ndarray
  directions: np.ndarray
  captions: list[str]


def caption(digit: int, direction: str) -> str:
  """Returns, e.g., "a 3 moving left"."""
  return f"a {digit} moving {direction}"


def all_captions() -> list[str]:
  """All 40 captions, by digit, then by direction."""
  return [caption(d, way) for d in range(10) for way in DIRECTIONS]


def parse_caption(text: str) -> tuple[int, int]:
  """Returns (digit, index of the direction) of a caption.

  Raises:
    ValueError: if it is not one of `all_captions()`.
  """
  captions = all_captions()
  if text not in captions:
    raise ValueError(
      f"prompt {text!r} is not one the digits model knows; write it like "
      f"{captions[12]!r} (0-9; {', '.join(DIRECTIONS)})"
    )
  return divmod(captions.index(text), len(DIRECTIONS))


@functools.cache
def _digit_images() -> tuple[np.ndarray, np.ndarray]:
  from sklearn.datasets import load_digits  # 0.3 s, only when drawn

  data = load_digits()
  images = data.images.astype(np.float32) / 16.0
  # bilinear to twice the size: sample positions lie at quarters of a pixel
  at = (np.arange(_DIGIT) + 0.5) / 2 - 0.5
  low = np.clip(np.floor(at).astype(int), 0, 7)
  high = np.clip(low + 1, 0, 7)
  share = np.clip(at - low, 0.0, 1.0).astype(np.float32)
  rows = (
    images[:, low] * (1 - share)[:, None] + images[:, high] * share[:, None]
  )
  large = rows[:, :, low] * (1 - share) + rows[:, :, high] * share
  return large, data.target.astype(np.int64)


def _split_indices(split: str) -> np.ndarray:
  count = len(_digit_images()[1])
  order = np.random.Generator(np.random.PCG64(0)).permutation(count)
  cut = int(count * _TEST_SHARE)
  parts = {"test": order[:cut], "train": order[cut:]}
  if split not in parts:
    raise ValueError(f"split {split!r} is unknown; use 'train' or 'test'")
  return parts[split]


def _bounce(start: np.ndarray, velocity: np.ndarray) -> np.ndarray:
  """Positions [N, FRAMES] of a point that reflects between the walls."""
  room = SIZE - _DIGIT
  free = start[:, None] + velocity[:, None] * _STEP * np.arange(FRAMES)
  folded = np.mod(free, 2 * room)
  return np.where(folded > room, 2 * room - folded, folded)


def make_clips(split: str, count: int, seed: int = 0) -> Clips:
  """Draws `count` clips; the same for the same arguments, on any machine.

  Captions come in turn, so that `count` a multiple of 40 is balanced. A clip
  starts where its motion goes on for at least four frames before a wall.

  Args:
    split: "train" or "test": which digit images are drawn from.
    count: N.
    seed: seed of the draw.

  Raises:
    ValueError: for an unknown split or a count below 1.
  """
  if count < 1:
    raise ValueError(f"number of clips is {count}; it must be at least 1")
  images, labels = _digit_images()
  pool = _split_indices(split)
  rng = np.random.Generator(np.random.PCG64(seed))
  captions = all_captions()
  turn = np.arange(count) % len(captions)
  digits, directions = np.divmod(turn, len(DIRECTIONS))

  by_digit = [pool[labels[pool] == d] for d in range(10)]
  shapes = np.array([rng.choice(by_digit[d]) for d in digits])
  velocity = COMPASS[directions]
  room = SIZE - _DIGIT
  # distance to the wall ahead, and to the wall on one side
  along = _GRID * rng.integers(room // 2 // _GRID, room // _GRID + 1, count)
  across = _GRID * rng.integers(0, room // _GRID + 1, count)
  tops, lefts = (
    _bounce(np.select([v < 0, v > 0], [along, room - along], default=across), v)
    for v in velocity.T
  )

  frames = np.zeros((count, FRAMES, SIZE, SIZE), np.uint8)
  pixels = np.round(images * 255).astype(np.uint8)
  for n in range(count):
    for f in range(FRAMES):
      top, left = tops[n, f], lefts[n, f]
      box = frames[n, f, top : top + _DIGIT, left : left + _DIGIT]
      box[...] = pixels[shapes[n]]
  frames = np.repeat(frames[..., None], 3, axis=-1)
  return Clips(frames, digits, directions, [captions[i] for i in turn])


class MovingDigits(tfds.core.GeneratorBasedBuilder):
  """Moving digits as a TFDS data set in ArrayRecord, without TensorFlow."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def __init__(self, *, clips: int = 4000, **kwargs: Any):
    """Sets the number of training clips; the test split has half as many."""
    self._counts = {"train": clips, "test": max(clips // 2, 1)}
    super().__init__(**{"file_format": "array_record", **kwargs})

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "frames": tfds.features.Tensor(
            shape=(FRAMES, SIZE, SIZE, 3), dtype=np.uint8, encoding="zlib"
          ),
          "prompt": tfds.features.Text(),
          "digit": tfds.features.Scalar(np.int64),
          "direction": tfds.features.Scalar(np.int64),
        }
      ),
      description=__doc__,
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # nothing is downloaded
    seeds = {"train": 0, "test": 1}
    return {
      split: self._generate_examples(split, count, seeds[split])
      for split, count in self._counts.items()
    }

  def _generate_examples(self, split: str, count: int, seed: int):
    clips = make_clips(split, count, seed)
    for i in range(count):
      yield (
        i,
        {
          "frames": clips.frames[i],
          "prompt": clips.captions[i],
          "digit": int(clips.digits[i]),
          "direction": int(clips.directions[i]),
        },
      )
