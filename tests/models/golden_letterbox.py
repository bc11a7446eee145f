"""Writes golden_letterbox.safetensors: images as the package hpsv2 shows them.

Run once, with the one file that is needed of the package, in the environment
of tests/interop/golden_open_clip.py (torch 2.14.1, torchvision 0.29.1):

    oc/bin/pip download --no-deps hpsv2==1.2.0
    unzip hpsv2-1.2.0-py3-none-any.whl "hpsv2/src/open_clip/*"
    oc/bin/python tests/models/golden_letterbox.py hpsv2/src/open_clip
"""

import importlib
import pathlib
import sys
import types

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

SIZE = 16
SHAPES = (40, 60), (61, 40), (9, 13), (33, 33), (16, 16)


def main():
  package = types.ModuleType("package")  # without what its __init__ imports
  package.__path__ = [sys.argv[1]]
  sys.modules["package"] = package
  transform = importlib.import_module("package.transform")
  # as create_model_and_transforms(light_augmentation=True) calls it
  show = transform.image_transform(
    SIZE, is_train=False, resize_longest_max=True
  )
  rng = np.random.default_rng(0)
  out = {}
  for shape in SHAPES:
    frame = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    name = "x".join(map(str, shape))
    out[f"{name}.frame"] = torch.from_numpy(frame)
    out[f"{name}.shown"] = show(Image.fromarray(frame)).contiguous()
  file = pathlib.Path(__file__).with_suffix(".safetensors")
  save_file(out, file)
  print(file.name, file.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
