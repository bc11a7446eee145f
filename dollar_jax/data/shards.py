"""Latent sets made shard by shard, so that what broke off can go on.

A shard is an ArrayRecord file of TFDS's own naming; beside it `shards/` holds
what is to be told of it, written last: a shard without that is made again.
When all are there, `finish` writes what TFDS opens the folder by.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (teaches numpy the name bfloat16)
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import (
  dataset_info,
  example_serializer,
  naming,
)

from dollar_jax.files import write_text

NAME = "latents"
VERSION = "1.0.0"
NOTES = "shards"

_DTYPE = "dtype"


@dataclasses.dataclass(frozen=True)
class Shards:
  """The shards of one set.

  Attributes:
    folder: of the set.
    count: how many there are.
    latent_shape: [T, H, W, C]; empty where the set has no latents.
    text_shape: [S, D].
    dtype: one of `DTYPES`.
  """

  folder: Path
  count: int
  latent_shape: tuple[int, ...]
  text_shape: tuple[int, int]
  dtype: str = "float32"

  @property
  def features(self) -> tfds.features.FeaturesDict:
    """What an example consists of, for TFDS."""
    # TFDS has no bfloat16: its bits are kept
    kind = np.uint16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
    tensor = tfds.features.Tensor
    features = {
      # blanks behind a prompt are zeros, which zlib makes go away
      "text": tensor(shape=self.text_shape, dtype=kind, encoding="zlib"),
      "text_mask": tensor(shape=self.text_shape[:1], dtype=np.bool_),
      "prompt": tfds.features.Text(),
    }
    if self.latent_shape:
      shape = self.latent_shape
      features[NAME] = tensor(shape=shape, dtype=kind, encoding="bytes")
    return tfds.features.FeaturesDict(features)

  @property
  def template(self) -> naming.ShardedFileTemplate:
    """How TFDS names the files."""
    return naming.ShardedFileTemplate(
      dataset_name=NAME,
      data_dir=os.fspath(self.folder),
      split="train",
      filetype_suffix="array_record",
    )

  def notes(self, index: int) -> dict[str, Any] | None:
    """What was noted of a shard that is done; None where it is not."""
    file = self._note(index)
    if not file.is_file() or not self._path(index).is_file():
      return None
    return json.loads(file.read_text(encoding="utf-8"))

  def write(
    self, index: int, examples: Iterable[dict[str, Any]], notes: dict[str, Any]
  ) -> None:
    """Writes one shard, whole or not at all.

    Args:
      index: which.
      examples: dicts of `latents` (if the set has them), `text`, `text_mask`
        and `prompt`.
      notes: anything JSON can hold; read once the examples have run out, and
        kept with their number, `examples`, and size, `bytes`.
    """
    from array_record.python import array_record_module

    features = self.features
    serializer = example_serializer.ExampleSerializer(
      features.get_serialized_info()
    )
    path, count, size = self._path(index), 0, 0
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    # group_size:1 lets a record be read without its neighbours
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    try:
      for example in examples:
        values = {k: self._stored(v) for k, v in example.items()}
        proto = serializer.get_tf_example(features.encode_example(values))
        # else the order of its entries is another in every process
        record = proto.SerializeToString(deterministic=True)
        writer.write(record)
        count, size = count + 1, size + len(record)
      writer.close()
      with part.open("rb") as file:
        os.fsync(file.fileno())
      part.replace(path)
    finally:
      if part.exists():
        writer.close()
        part.unlink()
    write_text(
      self._note(index),
      json.dumps(notes | {"examples": count, "bytes": size}) + "\n",
    )

  def finish(self, description: str, metadata: dict[str, Any]) -> None:
    """Writes what makes of all shards one set; dataset_info.json is last.

    Args:
      description: of the set.
      metadata: what `read_metadata` is to give.

    Raises:
      ValueError: if a shard is missing.
    """
    notes = [self.notes(index) for index in range(self.count)]
    if None in notes:
      raise ValueError(
        f"shard {notes.index(None)} of {self.count} is not in {self.folder}; "
        "start the same command again"
      )
    identity = dataset_info.DatasetIdentity(
      name=NAME,
      version=tfds.core.Version(VERSION),
      data_dir=os.fspath(self.folder),
      module_name=__name__,
    )
    metadata = metadata | {_DTYPE: self.dtype}
    info = tfds.core.DatasetInfo(
      builder=identity,
      features=self.features,
      description=description,
      metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format("array_record")
    split = tfds.core.SplitInfo(
      name="train",
      shard_lengths=[note["examples"] for note in notes],
      num_bytes=sum(note["bytes"] for note in notes),
      filename_template=self.template,
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    fresh = self.folder / ".info"
    fresh.mkdir(exist_ok=True)
    info.write_to_directory(fresh)
    files = sorted(fresh.iterdir(), key=lambda f: f.name == "dataset_info.json")
    for file in files:
      file.replace(self.folder / file.name)
    fresh.rmdir()

  def _path(self, index: int) -> Path:
    path = self.template.sharded_filepath(
      shard_index=index, num_shards=self.count
    )
    return Path(os.fspath(path))

  def _note(self, index: int) -> Path:
    return self.folder / NOTES / f"{index:05}.json"

  def _stored(self, value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype == bool:
      return value
    value = value.astype(np.dtype(self.dtype))
    return value.view(np.uint16) if self.dtype == "bfloat16" else value


def read_metadata(folder: str | os.PathLike) -> dict[str, Any]:
  """What is recorded of a set beside its examples; empty if nothing is.

  Raises:
    ValueError: if it cannot be read.
  """
  file = Path(folder) / "metadata.json"
  if not file.is_file():
    return {}
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{file} is not JSON ({error}); prepare it again"
    ) from None


@dataclasses.dataclass(frozen=True)
class AsFloat32:
  """Random access to a set that is stored in half precision.

  Attributes:
    source: gives what is stored.
    dtype: the type that it means, one of `DTYPES`.
  """

  source: Any
  dtype: str

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = dict(self.source[index])
    for name in {NAME, "text"} & example.keys():
      # TFDS knows no bfloat16, of which it gives the bits
      stored = np.asarray(example[name]).view(np.dtype(self.dtype))
      example[name] = stored.astype(np.float32)
    return example

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return map(self.__getitem__, range(len(self)))


def deal(count: int, size: int) -> list[range]:
  """Which of `count` items go to each shard of `size`."""
  starts = itertools.chain(range(0, count, size), (count,))
  return [range(a, b) for a, b in itertools.pairwise(starts)]
