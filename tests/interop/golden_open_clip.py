"""Writes golden_open_clip.safetensors: what OpenCLIP says of a tiny CLIP.

Run once, in an environment of its own, for OpenCLIP wants another torch than
the parity tests (written with open_clip_torch 3.3.0, torch 2.14.1 and
torchvision 0.29.1):

    python3.11 -m venv oc
    oc/bin/pip install open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1
    oc/bin/python tests/interop/golden_open_clip.py
"""

import pathlib

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from safetensors.torch import save_file

SIZE = 16
WORDS = 40

VISION = CLIPVisionCfg(
  layers=2,
  width=32,
  head_width=16,
  mlp_ratio=2.0,
  patch_size=8,
  image_size=SIZE,
)
TEXT = CLIPTextCfg(
  context_length=9,
  vocab_size=WORDS,
  width=24,
  heads=2,
  layers=3,
  mlp_ratio=2.0,
)
P = 20


def fill(model, generator):
  """Gives every parameter values that matter, biases included."""
  for name, value in model.named_parameters():
    noise = torch.randn(value.shape, generator=generator)
    if ".ln_" in f".{name}" and name.endswith("weight"):
      noise = 1 + 0.3 * noise
    elif value.ndim > 1 and "embedding" not in name:
      noise = 1.5 * noise * value[0].numel() ** -0.5
    elif value.ndim == 0:
      noise = torch.tensor(3.5)
    value.data.copy_(noise)


def main():
  generator = torch.Generator().manual_seed(0)
  pixels = torch.randn(3, 3, SIZE, SIZE, generator=generator)
  ids = torch.randint(1, WORDS - 1, (3, 9), generator=generator)
  for row, end in enumerate((8, 3, 5)):  # the end token, then zeros
    ids[row, end], ids[row, end + 1 :] = WORDS - 1, 0
  out = {"pixels": pixels, "ids": ids.int()}
  for quick in (False, True):
    model = CLIP(P, VISION, TEXT, quick_gelu=quick).eval()
    fill(model, torch.Generator().manual_seed(1))
    out |= {f"model.{k}": v for k, v in model.state_dict().items()}
    name = "quick_gelu" if quick else "gelu"
    with torch.inference_mode():
      out[f"{name}.image"] = model.encode_image(pixels)
      out[f"{name}.text"] = model.encode_text(ids)
      out[f"{name}.logits"] = model.get_logits(pixels, ids)[0]
  frame = torch.randint(0, 256, (40, 60, 3), generator=generator)
  frame = frame.to(torch.uint8)
  show = open_clip.image_transform(SIZE, is_train=False)
  out |= {"frame": frame, "shown": show(Image.fromarray(frame.numpy()))}
  file = pathlib.Path(__file__).with_suffix(".safetensors")
  save_file({k: v.contiguous().clone() for k, v in out.items()}, file)
  print(file.name, file.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
