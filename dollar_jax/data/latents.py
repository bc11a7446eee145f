"""Latents with their text embeddings as a TFDS data set in ArrayRecord."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dollar_jax.data import shards


@dataclasses.dataclass(frozen=True)
class Example:
  """One video as training sees it.

  Attributes:
    latents: float32 [T, H, W, C].
    text: float32 [S, D].
    text_mask: bool [S].
    prompt: the caption itself.
  """

  latents: np.ndarray
  text: np.ndarray
  text_mask: np.ndarray
  prompt: str


class Latents(tfds.core.GeneratorBasedBuilder):
  """Encoded videos and prompts, ready for training."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    examples: Iterable[Example] = (),
    shapes: tuple[tuple, tuple] = ((), ()),
    **kwargs: Any,
  ):
    self._examples, self._shapes = examples, shapes
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    latents, text = self._shapes
    tensor = tfds.features.Tensor
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "latents": tensor(shape=latents, dtype=np.float32),
          "text": tensor(shape=text, dtype=np.float32),
          "text_mask": tensor(shape=text[:1], dtype=np.bool_),
          "prompt": tfds.features.Text(),
        }
      ),
      description=self.__doc__,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict]]:
    for i, example in enumerate(self._examples):
      yield i, dataclasses.asdict(example)


def write(
  folder: str,
  examples: Iterable[Example],
  latent_shape: tuple[int, int, int, int],
  text_shape: tuple[int, int],
) -> None:
  """Writes a latent set; a set already there is left as it is.

  Args:
    folder: where the data set's version folder is made.
    examples: one for each video, in order.
    latent_shape: [T, H, W, C] of every latent.
    text_shape: [S, D] of every text embedding.
  """
  builder = Latents(
    examples=examples, shapes=(latent_shape, text_shape), data_dir=folder
  )
  builder.download_and_prepare()


def read(folder: str) -> Any:
  """Opens a latent set as a random-access source of dicts.

  Latents and text are float32, whatever they are stored in. A set of prompts
  alone has no latents.

  Raises:
    ValueError: if the folder holds no finished latent set.
  """
  folder = epath.Path(folder)
  found = sorted(
    path.parent
    for pattern in ("dataset_info.json", "*/*/dataset_info.json")
    for path in folder.glob(pattern)
  )
  if not found:
    raise ValueError(
      f"{folder} holds no prepared latents (no dataset_info.json); make them "
      "with `dollar prepare`"
    )
  builder = tfds.builder_from_directory(found[-1])
  source = builder.as_data_source(split="train")
  dtype = shards.read_metadata(found[-1]).get("dtype", "float32")
  return source if dtype == "float32" else shards.AsFloat32(source, dtype)
