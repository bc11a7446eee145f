"""VideoMAE as a feature extractor, beside transformers' own classifier."""

import json

import numpy as np
import pytest

from dollar_jax.rewards.features import get_features

try:
  import torch
  import transformers
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  torch = transformers = None

pytestmark = pytest.mark.torch

SIZES = {
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "image_size": 32,
  "num_frames": 4,
  "patch_size": 16,
}
PROCESSOR = {
  "size": {"shortest_edge": 32},
  "crop_size": {"height": 32, "width": 32},
  "image_mean": [0.5, 0.4, 0.3],
  "image_std": [0.2, 0.2, 0.2],
}


@pytest.fixture(scope="module")
def network():
  torch.manual_seed(0)
  config = transformers.VideoMAEConfig(**SIZES, num_labels=5)
  return transformers.VideoMAEForVideoClassification(config).eval()


@pytest.fixture
def folder(network, tmp_path):
  network.save_pretrained(tmp_path)
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
  return tmp_path


def test_features_are_what_the_classifier_sees(network, folder):
  """No resize here, so that the pixels themselves can be written down."""
  frames = np.random.default_rng(0).integers(
    0, 256, (2, 10, 32, 32, 3), np.uint8
  )
  extract = get_features(f"videomae:{folder}")
  found = extract(frames)
  assert (found.shape, found.dtype) == ((2, extract.dim), np.float32)
  pixels = frames[:, [0, 3, 6, 9]] / 255 - PROCESSOR["image_mean"]
  pixels = torch.tensor(pixels / 0.2, dtype=torch.float32)
  with torch.no_grad():
    logits = network(pixels.permute(0, 1, 4, 2, 3)).logits
    mine = network.classifier(torch.tensor(found))
  np.testing.assert_allclose(mine, logits, atol=2e-5)


def test_other_sizes_are_scaled_and_short_clips_repeated(folder):
  extract = get_features(f"videomae:{folder}")
  clip = np.full((1, 2, 48, 90, 3), 77, np.uint8)
  small = np.full((1, 4, 32, 32, 3), 77, np.uint8)
  np.testing.assert_allclose(extract(clip), extract(small), atol=1e-5)


def test_what_is_no_fine_tuned_videomae_is_refused(folder, network):
  network.videomae.save_pretrained(folder)
  with pytest.raises(ValueError, match=r"lacks .*fine-tuned to classify"):
    get_features(f"videomae:{folder}")
  (folder / "config.json").write_text('{"model_type": "clip"}')
  with pytest.raises(ValueError, match="of type 'clip'"):
    get_features(f"videomae:{folder}")


def test_damaged_weights_are_one_sentence(folder):
  weights = folder / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:300])
  with pytest.raises(ValueError, match="cannot be read"):
    get_features(f"videomae:{folder}")
  weights.unlink()
  (folder / "pytorch_model.bin").write_bytes(b"pickle")
  with pytest.raises(ValueError, match="cannot be read"):
    get_features(f"videomae:{folder}")
