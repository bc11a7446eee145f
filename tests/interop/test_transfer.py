"""`interop.transfer`: safetensors to Orbax and back, a part at a time."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dollar_jax.interop import diffusers, orbax_weights, transfer, weights
from dollar_jax.interop.pipeline import Pipeline


@pytest.fixture
def small_parts(monkeypatch):
  """Files of a few tensors each, as large models have."""
  monkeypatch.setattr(weights, "SHARD_BYTES", 3000)
  monkeypatch.setattr(orbax_weights, "PART_BYTES", 3000)


def trees_are_equal(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    x.dtype == y.dtype and x.tobytes() == y.tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize("scan", [True, False])
def test_a_model_comes_back_bit_for_bit(small_parts, saved, tmp_path, scan):
  orbax, back = tmp_path / "orbax", tmp_path / "back"
  assert transfer.transfer(saved, orbax) == "Orbax"
  parts = sorted(p.name for p in (orbax / "transformer/orbax").iterdir())
  assert len(parts) > 3
  assert parts[0] == f"00001-of-{len(parts):05d}"
  assert not list(orbax.rglob("transformer/*.safetensors"))
  assert transfer.transfer(orbax, back) == "safetensors"
  shards = list(back.glob("transformer/*.safetensors"))
  assert len(shards) > 3
  assert transfer.differences(saved, orbax) == []
  assert transfer.differences(saved, back) == []
  wanted = diffusers.load(saved, scan=scan, host=True)
  for folder in (orbax, back):
    denoiser, params = diffusers.load(folder, scan=scan, host=True)
    assert denoiser == wanted[0]
    assert trees_are_equal(params, wanted[1])
  model = Pipeline.load(orbax)  # with every other part
  assert model.encode(["a 3"])[0].shape == (1, 4, 6)


def test_a_part_is_read_once(small_parts, saved, tmp_path, monkeypatch):
  """Of a large model each takes seconds."""
  orbax, back = tmp_path / "orbax", tmp_path / "back"
  transfer.transfer(saved, orbax)
  restored, restore = [], orbax_weights._restore
  monkeypatch.setattr(
    orbax_weights, "_restore", lambda p: restored.append(p) or restore(p)
  )
  parts = sorted((orbax / "transformer/orbax").resolve().iterdir())
  transfer.transfer(orbax, back)
  assert restored == parts
  for a, b in ((saved, orbax), (orbax, back)):
    restored.clear()
    assert transfer.differences(a, b) == []
    assert restored == parts


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_can_be_narrowed_on_the_way(saved, tmp_path, dtype):
  transfer.transfer(saved, tmp_path / "out", dtype)
  _, params = diffusers.load(tmp_path / "out", host=True)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
  assert transfer.differences(saved, tmp_path / "out", dtype) == []
  assert len(transfer.differences(saved, tmp_path / "out")) > 10


def test_a_transformer_alone_is_moved(saved, tmp_path):
  alone = saved / "transformer"
  transfer.transfer(alone, tmp_path / "out")
  assert transfer.differences(alone, tmp_path / "out") == []
  assert {p.name for p in (tmp_path / "out").iterdir()} == {
    "config.json",
    "orbax",
  }


def test_two_transformers_are_moved(saved, tmp_path):
  shutil.copytree(saved / "transformer", saved / "transformer_2")
  transfer.transfer(saved, tmp_path / "out")
  assert (tmp_path / "out/transformer_2/orbax").is_dir()
  assert transfer.differences(saved, tmp_path / "out") == []


def test_differences_are_named(saved, tmp_path):
  transfer.transfer(saved, tmp_path / "out")
  model = Pipeline.load(saved)
  params = jax.tree.map(np.array, model.params)
  params["proj_out"]["bias"][1] += 1.0
  dataclasses.replace(model, params=params).save(saved)
  (saved / "note.txt").write_text("new")
  assert set(transfer.differences(saved, tmp_path / "out")) >= {
    "note.txt",
    "transformer: proj_out.bias",
  }


def remove_a_part(folder):
  shutil.rmtree(sorted((folder / "transformer/orbax").iterdir())[1])


def tear_a_part(folder):
  part = sorted((folder / "transformer/orbax").iterdir())[1]
  for file in part.rglob("d/*"):
    file.write_bytes(b"")


def resize(folder):
  file = folder / "transformer" / "config.json"
  config = json.loads(file.read_text())
  file.write_text(json.dumps(config | {"ffn_dim": 24}))


@pytest.mark.parametrize(
  ("damage", "sentence"),
  [
    (remove_a_part, r"lacks 1 of \d+ parts, 00002-of"),
    (tear_a_part, "is not a whole Orbax checkpoint"),
    (resize, "6 mis-shaped: blocks.0.ffn"),
  ],
)
def test_damaged_parts_are_named(
  small_parts, saved, tmp_path, damage, sentence
):
  transfer.transfer(saved, tmp_path / "out")
  damage(tmp_path / "out")
  with pytest.raises(ValueError, match=sentence):
    diffusers.load(tmp_path / "out")
  with pytest.raises(ValueError, match=sentence):
    transfer.transfer(tmp_path / "out", tmp_path / "again")
  assert not (tmp_path / "again").exists()


def test_a_full_disk_leaves_nothing(saved, tmp_path, monkeypatch):
  def full(*_):
    raise RuntimeError("write failed [os_error_code='28']")

  monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
  with pytest.raises(OSError, match="No space left on device"):
    transfer.transfer(saved, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  assert not list(tmp_path.glob(".out*"))


def test_places_that_cannot_be_are_refused(saved, tmp_path):
  with pytest.raises(ValueError, match="lies in the model"):
    transfer.transfer(saved, saved / "transformer" / "orbax")
  with pytest.raises(ValueError, match="is not a folder"):
    transfer.transfer(tmp_path / "nothing", tmp_path / "out")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match="holds other files than a model"):
    transfer.transfer(saved, tmp_path / "mine")
