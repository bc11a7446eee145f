"""JPEG size and sharpness against truths that need no reference code."""

import importlib.util
import pathlib
import shutil
import sys
import sysconfig
import time
import types

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dollar_jax.rewards import image_quality

NOISE = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)


def test_jpeg_size_is_what_a_file_would_weigh(tmp_path):
  weights = []
  for frame in NOISE[1]:
    path = tmp_path / "frame.jpg"
    Image.fromarray(frame).save(path, quality=image_quality.JPEG_QUALITY)
    weights.append(path.stat().st_size / 1000)
  size = image_quality.jpeg_size(NOISE, ["", ""])
  assert size.shape == (2,)
  assert size.dtype == np.float32
  np.testing.assert_allclose(size[1], np.mean(weights), rtol=1e-6)


def test_detail_costs_bytes_and_compressibility_is_the_other_direction():
  flat = np.full_like(NOISE, 128)
  size = image_quality.jpeg_size(np.concatenate([flat, NOISE]), [""] * 4)
  assert size[0] == size[1] < 0.7  # headers alone
  assert (size[2:] > 1.3 * size[0]).all()
  np.testing.assert_array_equal(
    image_quality.jpeg_compressibility(NOISE, ["", ""]), -size[2:]
  )


def test_sharpness_of_one_bright_pixel_by_hand():
  frames = np.zeros((1, 1, 7, 7, 3), np.uint8)
  frames[0, 0, 3, 3] = 100
  # of the 25 inner pixels one has -400 and four have 100: their mean is 0
  expected = (400**2 + 4 * 100**2) / 25
  value = image_quality.sharpness(frames, [""])
  np.testing.assert_allclose(value, [expected], rtol=1e-5)


def test_sharpness_ignores_a_ramp_and_weighs_colours_as_luma():
  ramp = np.broadcast_to(np.arange(0, 90, 10, np.uint8), (1, 2, 9, 9))
  ramp = np.repeat(ramp[..., None], 3, axis=-1)
  assert image_quality.sharpness(ramp, [""])[0] < 1e-6
  green = NOISE * np.array([0, 1, 0], np.uint8)
  grey = np.repeat(NOISE[..., 1:2], 3, axis=-1)
  np.testing.assert_allclose(
    image_quality.sharpness(green, ["", ""]),
    0.587**2 * image_quality.sharpness(grey, ["", ""]),
    rtol=1e-4,
  )


def test_sharpness_says_when_frames_are_too_small():
  with pytest.raises(ValueError, match="2x9 pixels; sharpness needs"):
    image_quality.sharpness(np.zeros((1, 1, 2, 9, 3), np.uint8), [""])


def test_a_refresh_of_the_latent_reward_model_is_scored_quickly():
  """256 clips in half a second, in CPU time: others share this machine."""
  frames = np.zeros((256, 8, 32, 32, 3), np.uint8)
  frames[:, :, 8:24, 8:24] = NOISE[0, 0]
  for reward in (image_quality.jpeg_size, image_quality.sharpness):
    start = time.process_time()
    reward(frames, [""] * 256)
    assert time.process_time() - start < 1.0, reward.__name__


class _Brisque:
  """In place of the package's class."""

  def __init__(self, url):
    assert not url  # no frame is an address

  def score(self, frame):
    return float(frame.mean())


def test_brisque_is_the_mean_over_frames_turned_round(monkeypatch):
  package = types.SimpleNamespace(BRISQUE=_Brisque)
  monkeypatch.setattr(image_quality, "need", lambda *names: package)
  image_quality._brisque.cache_clear()
  value = image_quality.brisque(NOISE, ["", ""])
  image_quality._brisque.cache_clear()
  assert value.dtype == np.float32
  np.testing.assert_allclose(value, -NOISE.mean(axis=(1, 2, 3, 4)), rtol=1e-6)


def test_brisque_finds_noise_and_nothing_where_nothing_is():
  if importlib.util.find_spec("brisque") is None:
    header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    assert not (shutil.which("c++") and header.is_file()), "run launch/test.sh"
    pytest.skip("brisque needs a compiler for C++ and Python's headers")
  rng = np.random.default_rng(0)
  clean = ndimage.gaussian_filter(rng.standard_normal((96, 96)), 2.0)
  clean = 127 + 60 * clean / clean.std()
  frames = np.stack([clean, clean + rng.normal(0, 40, clean.shape), 0 * clean])
  frames = np.clip(frames, 0, 255).astype(np.uint8)[:, None, :, :, None]
  value = image_quality.brisque(frames.repeat(3, axis=-1), [""] * 3)
  assert value[0] > value[1] + 5
  assert np.isnan(value[2])


def test_a_package_that_is_missing_is_one_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, "brisque", None)
  image_quality._brisque.cache_clear()
  with pytest.raises(ValueError, match=r"reward 'brisque' needs the package"):
    image_quality.brisque(NOISE, ["", ""])
