"""`dollar convert`: forms, bits and what it refuses."""

import re

import jax
import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.interop import diffusers, transfer
from dollar_jax.interop.pipeline import EMBEDDED


@pytest.fixture
def convert(tmp_path, capsys):
  """Converts into tmp_path/out; returns exit code, stdout and stderr."""

  def call(source, *flags, out="out"):
    line = [f"--source={source}", f"--out={tmp_path / out}", *flags]
    code = cli.main(["convert", *line])
    return code, *capsys.readouterr()

  return call


def test_there_and_back(convert, tmp_path):
  code, text, _ = convert(EMBEDDED, "--verify")
  assert code == 0
  assert text.endswith(f"as Orbax in {tmp_path}/out, read again and the same\n")
  assert (tmp_path / "out/transformer/orbax").is_dir()
  code, text, _ = convert(tmp_path / "out", "--verify", out="back")
  assert code == 0
  assert "as safetensors in" in text
  assert transfer.differences(EMBEDDED, tmp_path / "back") == []


def test_a_type_to_store(convert, tmp_path):
  code, *_ = convert(EMBEDDED, "--dtype=bfloat16", "--verify")
  assert code == 0
  _, params = diffusers.load(tmp_path / "out", host=True)
  _, exact = diffusers.load(EMBEDDED, host=True)
  for leaf, full in zip(
    jax.tree.leaves(params), jax.tree.leaves(exact), strict=True
  ):
    assert leaf.dtype == "bfloat16"
    np.testing.assert_array_equal(leaf, full.astype(leaf.dtype))


def test_a_copy_that_went_wrong_is_named(convert, monkeypatch):
  wrong = ["transformer: proj_out.bias", "vae/config.json"]
  monkeypatch.setattr(transfer, "differences", lambda *_, **__: wrong)
  code, _, err = convert(EMBEDDED, "--verify")
  assert code == 1
  assert re.search("differs .* in 2 places, first transformer: proj_out", err)


def test_a_source_that_is_none(convert, tmp_path):
  code, _, err = convert(tmp_path / "nothing")
  assert code == 1
  assert err.count("\n") == 1
  assert "is not a folder; give a diffusers folder" in err
  assert not (tmp_path / "out").exists()
