"""Latent sets: what is written is what is read."""

import numpy as np
import pytest

from dollar_jax.data import latents

SHAPES = (1, 2, 2, 3), (2, 4)


def _example(i):
  return latents.Example(
    latents=np.full(SHAPES[0], i, np.float32),
    text=np.zeros(SHAPES[1], np.float32),
    text_mask=np.array([True, False]),
    prompt=str(i),
  )


def test_reading_gives_what_was_written(prepared):
  source = latents.read(prepared / "latents")
  assert len(source) == 9
  rows = {row["prompt"].decode(): row for row in source}
  assert rows.keys() == {f"prompt {i} ü" for i in range(9)}
  for i in range(9):
    row = rows[f"prompt {i} ü"]
    wanted = np.full((2, 3, 4, 5), np.float32(i) + np.float32(0.1))
    np.testing.assert_array_equal(row["latents"], wanted)
    np.testing.assert_array_equal(row["text"], np.full((3, 7), -i))
    np.testing.assert_array_equal(row["text_mask"], np.arange(3) < i % 4)
    types = [row[name].dtype for name in ("latents", "text", "text_mask")]
    assert types == [np.float32, np.float32, np.bool_]


def test_version_folder_may_be_named_too(prepared):
  folder = prepared / "latents" / "latents" / "1.0.0"
  assert len(latents.read(str(folder))) == 9


def test_a_set_that_is_there_is_left_as_it_is(tmp_path):
  latents.write(tmp_path, map(_example, range(3)), *SHAPES)
  latents.write(tmp_path, map(_example, range(10, 15)), *SHAPES)
  prompts = {row["prompt"] for row in latents.read(tmp_path)}
  assert prompts == {b"0", b"1", b"2"}


def test_a_set_that_broke_off_is_none_and_can_be_made_again(tmp_path):
  def broken():
    yield _example(0)
    raise RuntimeError("the video codec fell over")

  with pytest.raises(RuntimeError, match="fell over"):
    latents.write(tmp_path, broken(), *SHAPES)
  with pytest.raises(ValueError, match="holds no prepared latents"):
    latents.read(tmp_path)
  latents.write(tmp_path, map(_example, range(2)), *SHAPES)
  assert len(latents.read(tmp_path)) == 2


def test_latents_of_another_shape_are_not_written(tmp_path):
  with pytest.raises(ValueError):
    latents.write(tmp_path, [_example(0)], (1, 2, 2, 4), SHAPES[1])


def test_a_folder_without_latents_says_how_to_make_them(tmp_path):
  for folder in (tmp_path, tmp_path / "absent"):
    with pytest.raises(ValueError, match="make them with `dollar prepare`"):
      latents.read(folder)
