"""Peak memory of `dollar convert` on a transformer of a published size.

  python benchmarks/convert_memory.py --folder=DIR [--model=Wan2.1-T2V-14B]

DIR gets a checkpoint in shards, all zeros (files with holes, which take no room
on most disks). It is moved to Orbax and from there back, each with --verify and
in a process of its own. The results take twice the model's bytes of the disk
and are removed.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

from dollar_jax.interop.keymaps import TRANSFORMERS, Architecture
from dollar_jax.interop.networks import WEIGHTS, template
from dollar_jax.interop.published import PUBLISHED
from dollar_jax.interop.weights import plan_shards

SHARD_BYTES = 10 * 2**30
"""Of one file, as publishers have it."""


def main(args: argparse.Namespace) -> None:
  """Prints the model's bytes, and seconds and peak memory of each way."""
  source, orbax, back = (
    args.folder / name for name in ("source", "orbax", "back")
  )
  size = write_zeros(args.model, source / "transformer")
  print(f"{args.model}: {size / 1e9:.1f} GB in bfloat16")
  try:
    for before, after in ((source, orbax), (orbax, back)):
      seconds, peak = convert(before, after)
      print(
        f"{before.name} to {after.name}, verified: {seconds:.0f} s, at most "
        f"{peak / 1e9:.2f} GB of memory",
        flush=True,
      )
  finally:
    for folder in (source, orbax, back):
      shutil.rmtree(folder, ignore_errors=True)


def write_zeros(name: str, folder: pathlib.Path) -> int:
  """A transformer's folder, in bfloat16; returns the bytes of its tensors."""
  config = PUBLISHED[name]
  kind = next(a for a in TRANSFORMERS.values() if a.config is type(config))
  shapes = torch_shapes(kind, config)
  sizes = {key: 2 * math.prod(shape) for key, shape in shapes.items()}
  shards = plan_shards(sizes, SHARD_BYTES)
  folder.mkdir(parents=True)
  fields = {"_class_name": kind.name, **kind.to_json(config)}
  (folder / "config.json").write_text(json.dumps(fields))
  weight_map = {}
  for i, keys in enumerate(shards, 1):
    file = f"{WEIGHTS}-{i:05d}-of-{len(shards):05d}.safetensors"
    header, end = {}, 0
    for key in keys:
      start, end = end, end + sizes[key]
      header[key] = {
        "dtype": "BF16",
        "shape": shapes[key],
        "data_offsets": [start, end],
      }
      weight_map[key] = file
    text = json.dumps(header).encode()
    with open(folder / file, "wb") as handle:
      handle.write(struct.pack("<Q", len(text)) + text)
      handle.truncate(8 + len(text) + end)
  index = folder / f"{WEIGHTS}.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  return sum(sizes.values())


def torch_shapes(kind: Architecture, config) -> dict[str, tuple[int, ...]]:
  """Shapes of a transformer's state dict."""
  keymap, leaves = kind.keymap(config), template(kind.module(config))
  shapes = {}
  for entry in keymap.entries:
    leaf = leaves
    for part in entry.path:
      leaf = leaf[part]
    shapes[entry.torch] = entry.torch_shape(leaf.shape)
  return shapes


def convert(source: pathlib.Path, out: pathlib.Path) -> tuple[float, int]:
  """Seconds and the peak bytes of memory of one conversion."""
  command = [sys.executable, "-m", "dollar_jax", "convert", "--verify"]
  start = time.perf_counter()
  process = subprocess.Popen([*command, f"--source={source}", f"--out={out}"])
  _, status, used = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f"converting {source} failed")
  return time.perf_counter() - start, used.ru_maxrss * 1024


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--model", choices=PUBLISHED, default="Wan2.1-T2V-14B")
  main(parser.parse_args())
