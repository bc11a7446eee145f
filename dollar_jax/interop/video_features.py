"""VideoMAE of transformers, fine-tuned, as a feature extractor of clips.

What a distance sees depends on what the network was trained for: classes of
Kinetics can be told from single frames, those of Something-Something take
motion (Ge et al., "On the Content Bias in Fréchet Video Distance", arXiv
2404.12391).
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from dollar_jax.interop.buckets import on_disk
from dollar_jax.interop.folders import read_json


class VideoMAEFeatures:
  """What VideoMAE's classifier sees: the mean of all tokens, normalised.

  Attributes:
    frames: frames of a clip that it looks at, evenly from first to last.
    dim: D, the number of features.
  """

  def __init__(self, folder: str | Path):
    """Opens a folder as `hf download` leaves it.

    Args:
      folder: with config.json, preprocessor_config.json and safetensors.

    Raises:
      ValueError: if it holds no fine-tuned VideoMAE, or torch or transformers
        is missing.
    """
    folder = Path(on_disk(folder))
    config = read_json(folder / "config.json")
    if config.get("model_type") != "videomae":
      raise ValueError(
        f"{folder} holds a model of type {config.get('model_type')!r}; give a "
        "folder of VideoMAE, such as MCG-NJU/videomae-base-finetuned-ssv2"
      )
    read_json(folder / "preprocessor_config.json")
    try:
      import torch
      import transformers
    except ImportError:
      raise ValueError(
        f"{folder} is run by transformers, which is not installed; pip install "
        "'dollar_jax[torch]'"
      ) from None
    # Since release 5 the plain name asks for torchvision.
    processor = (
      getattr(transformers, "VideoMAEImageProcessorPil", None)
      or transformers.VideoMAEImageProcessor
    )
    try:
      self._model, loading = (
        transformers.VideoMAEForVideoClassification.from_pretrained(
          folder,
          local_files_only=True,
          use_safetensors=True,
          output_loading_info=True,
          dtype=torch.float32,
        )
      )
    except (OSError, RuntimeError, SafetensorError) as error:
      first = str(error).splitlines()[0]
      raise ValueError(f"{folder} cannot be read: {first}") from None
    if loading["missing_keys"]:
      raise ValueError(
        f"{folder} lacks {sorted(loading['missing_keys'])[0]}; give a VideoMAE "
        "that was fine-tuned to classify videos"
      )
    self._processor = processor.from_pretrained(folder, local_files_only=True)
    self._torch = torch
    self._model.eval()
    self.frames = self._model.config.num_frames
    self.dim = self._model.config.hidden_size

  def __call__(self, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [B, F, H, W, 3] → features float32 [B, D]."""
    seen = np.linspace(0, frames.shape[1] - 1, self.frames).round().astype(int)
    inputs = self._processor(
      [list(clip[seen]) for clip in frames], return_tensors="pt"
    )
    network = self._model
    with self._torch.inference_mode():
      tokens = network.videomae(inputs["pixel_values"]).last_hidden_state
      if network.fc_norm is None:
        return tokens[:, 0].numpy()
      return network.fc_norm(tokens.mean(1)).numpy()
