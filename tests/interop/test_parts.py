"""Codecs and text encoders by themselves: kept, opened, told apart."""

import dataclasses
import shutil

import numpy as np
import pytest

from dollar_jax.interop import parts
from dollar_jax.interop.pipeline import EMBEDDED, Pipeline
from dollar_jax.interop.t5 import T5Encoder
from dollar_jax.interop.text_encoders import WordEncoder
from dollar_jax.models.cogvideox_vae import CogVideoXVAEConfig
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.video_vae import VideoVAE
from dollar_jax.models.wan_vae import WanVAEConfig


@pytest.fixture(scope="module")
def codec():
  clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
  return LinearVAE.fit(clips, channels=6)


def test_what_is_kept_is_known_again(codec, tmp_path):
  encoder = WordEncoder.create(["a", "b"], 5, 3)
  assert parts.load_parts(tmp_path) is None
  parts.save_parts(tmp_path, codec, encoder)
  found = parts.load_parts(tmp_path)
  assert list(map(parts.identity, found)) == [
    parts.identity(codec),
    parts.identity(encoder),
  ]
  np.testing.assert_array_equal(found[0].basis, codec.basis)
  (tmp_path / "vae" / "config.json").unlink()
  with pytest.raises(ValueError, match=r"config.json is missing"):
    parts.load_parts(tmp_path)


def test_others_have_another_fingerprint(codec):
  found = {
    parts.identity(part)["fingerprint"]
    for part in (
      codec,
      dataclasses.replace(codec, mean=codec.mean + np.float32(1e-6)),
      WordEncoder.create(["a", "b"], 5, 3),
      WordEncoder.create(["a", "c"], 5, 3),
      WordEncoder.create(["a", "b"], 5, 4),
      WordEncoder.create(["a", "b"], 5, 3, seed=1),
    )
  }
  assert len(found) == 6


def test_parts_of_a_model_without_its_network(tmp_path):
  codec, encoder, recipe = parts.open_parts("embedded")
  model = Pipeline.load("embedded")
  assert parts.identity(codec) == parts.identity(model.codec)
  assert parts.identity(encoder) == parts.identity(model.text_encoder)
  assert recipe == model.recipe
  assert parts.clip_size(codec, recipe.latent_shape) == (8, 32, 32)
  run = tmp_path / "run" / "model"
  shutil.copytree(EMBEDDED, run, ignore=shutil.ignore_patterns("vae"))
  assert parts.open_parts(str(tmp_path / "run"))[0] is None
  with pytest.raises(ValueError, match="is not a folder"):
    parts.open_parts("/nowhere")


def test_a_t5_is_known_by_what_its_files_hold(tmp_path, monkeypatch):
  from dollar_jax.interop import t5

  monkeypatch.setattr(t5, "read_weights", lambda *_: {})
  for name in ("one", "two"):
    for part, file in (
      ("text_encoder", "model.safetensors"),
      ("tokenizer", "tokenizer.json"),
    ):
      (tmp_path / name / part).mkdir(parents=True)
      (tmp_path / name / part / file).write_text("the same")
    (tmp_path / name / "text_encoder" / "config.json").write_text(
      '{"architectures": ["UMT5EncoderModel"], "d_model": 8}'
    )
  one, two = (T5Encoder(tmp_path / name) for name in ("one", "two"))
  assert parts.identity(one) == parts.identity(two)
  assert parts.identity(one)["name"] == "UMT5EncoderModel"
  (tmp_path / "two" / "tokenizer" / "tokenizer.json").write_text("not same")
  other = T5Encoder(tmp_path / "two")
  assert parts.identity(one) != parts.identity(other)


def test_streamed_fit_is_the_fit_of_all(codec):
  clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
  streamed = LinearVAE.fit_many(iter(clips), channels=6)
  for name in ("mean", "scale"):
    np.testing.assert_allclose(
      getattr(streamed, name), getattr(codec, name), rtol=1e-4, atol=1e-6
    )
  assert streamed.psnr(clips) == pytest.approx(codec.psnr(clips), abs=1e-3)
  with pytest.raises(ValueError, match="there is no clip to fit a codec to"):
    LinearVAE.fit_many(iter([]))


@pytest.mark.parametrize(
  ("size", "clip"),
  [
    (CogVideoXVAEConfig(), (49, 480, 720)),
    (CogVideoXVAEConfig(), (128, 192, 320)),
    (WanVAEConfig(), (81, 480, 832)),
  ],
)
def test_a_clip_is_as_large_as_what_its_latents_were_made_of(size, clip):
  codec = VideoVAE({}, size)
  assert parts.clip_size(codec, codec.latent_shape(*clip)) == clip
