"""Sets made shard by shard: whole or not, in any type, again the same."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dollar_jax.data import latents, shards
from dollar_jax.data.shards import Shards, deal
from dollar_jax.files import DTYPES

SHAPES = (2, 2, 3, 4), (3, 5)


def examples(rows, with_latents=True):
  for i in rows:
    rng = np.random.default_rng(i)
    made = {
      "text": rng.standard_normal(SHAPES[1]).astype(np.float32),
      "text_mask": np.arange(3) <= i % 3,
      "prompt": f"prompt {i} ü",
    }
    if with_latents:
      made["latents"] = rng.standard_normal(SHAPES[0]).astype(np.float32)
    yield made


def write(folder, dtype="float32", only=None):
  """Three shards, the second without examples."""
  found = Shards(folder, 3, *SHAPES, dtype)
  for index, rows in enumerate([range(2), range(0), range(2, 5)]):
    if only is None or index in only:
      found.write(index, examples(rows), {"of": index})
  return found


@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)],
)
def test_what_is_read_is_what_was_written(tmp_path, dtype, tolerance):
  write(tmp_path, dtype).finish("a set", {"codec": {"name": "x"}})
  source = latents.read(tmp_path)
  assert len(source) == 5
  for i, wanted in enumerate(examples(range(5))):
    found = source[i]
    assert found["prompt"].decode() == wanted["prompt"]
    np.testing.assert_array_equal(found["text_mask"], wanted["text_mask"])
    for name in ("latents", "text"):
      assert found[name].dtype == np.float32
      np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance)
      exact = (found[name] == wanted[name]).all()
      assert exact == (dtype == "float32")
  builder = tfds.builder_from_directory(tmp_path)
  assert builder.info.metadata == {"codec": {"name": "x"}, "dtype": dtype}
  assert shards.read_metadata(tmp_path) == builder.info.metadata


def test_half_precision_takes_half_the_room(tmp_path):
  shape = (4, 16, 16, 8)
  sizes = {}
  for dtype in DTYPES:
    found = Shards(tmp_path / dtype, 1, shape, SHAPES[1], dtype)
    [example] = examples([0])
    rng = np.random.default_rng(0)
    example["latents"] = rng.standard_normal(shape).astype(np.float32)
    found.write(0, [example], {})
    sizes[dtype] = found.notes(0)["bytes"]
  assert sizes["float16"] == pytest.approx(sizes["float32"] / 2, rel=0.02)
  assert sizes["bfloat16"] == pytest.approx(sizes["float32"] / 2, rel=0.02)


def test_a_set_of_prompts_has_no_latents(tmp_path):
  found = Shards(tmp_path, 1, (), SHAPES[1])
  found.write(0, examples(range(3), with_latents=False), {})
  found.finish("prompts", {})
  source = latents.read(tmp_path)
  assert source[2].keys() == {"text", "text_mask", "prompt"}


def test_a_shard_that_broke_off_is_none(tmp_path):
  found = write(tmp_path, only=[0, 1])

  def broken():
    yield from examples(range(2, 4))
    raise RuntimeError("the machine fell over")

  with pytest.raises(RuntimeError, match="fell over"):
    found.write(2, broken(), {})
  assert found.notes(2) is None
  assert found.notes(0) == {
    "of": 0,
    "examples": 2,
    "bytes": found.notes(0)["bytes"],
  }
  assert not [p for p in tmp_path.rglob("*") if "part" in p.name]
  with pytest.raises(ValueError, match=r"shard 2 of 3 is not in .*; start the"):
    found.finish("a set", {})
  with pytest.raises(ValueError, match="holds no prepared latents"):
    latents.read(tmp_path)


def test_bytes_are_the_same_whenever_a_shard_is_made(tmp_path):
  write(tmp_path / "whole").finish("a set", {})
  for only in ([2], [0], [1]):
    found = write(tmp_path / "parts", only=only)
  found.finish("a set", {})
  files = [p for p in (tmp_path / "whole").rglob("*") if p.is_file()]
  assert len(files) == 3 + 3 + 3
  for file in files:
    other = tmp_path / "parts" / file.relative_to(tmp_path / "whole")
    assert file.read_bytes() == other.read_bytes(), file.name


def test_items_are_dealt_in_order():
  assert deal(7, 3) == [range(3), range(3, 6), range(6, 7)]
  assert deal(6, 3) == [range(3), range(3, 6)]
  assert deal(2, 5) == [range(2)]
