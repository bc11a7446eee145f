"""Moves a model between its two forms, for `dollar convert`."""

import numpy as np
from absl import flags
from flax import traverse_util

from dollar_jax.interop import load, transfer
from dollar_jax.interop.buckets import place
from dollar_jax.interop.convert import narrow
from dollar_jax.train.models import open_model
from dollar_jax.typing import Params


def main(values: flags.FlagValues) -> None:
  """Writes the folder.

  Raises:
    ValueError: if SOURCE is not a whole model, or OUT differs from it.
    OSError: if OUT cannot be written.
  """
  source, out, dtype = values.source, values.out, values.dtype
  wrong = []
  if (place(source) / "checkpoints").is_dir():
    form, model = "safetensors", open_model(source)
    model.save(out, dtype)
    if values.verify:
      _, params = load(out, host=True, scan=model.denoiser.config.scan)
      wrong = _differing_leaves(model.params, params, dtype)
  else:
    form = transfer.transfer(source, out, dtype, progress=True)
    if values.verify:
      wrong = transfer.differences(source, out, dtype, progress=True)
  if wrong:
    raise ValueError(
      f"{out} differs from {source} in {len(wrong)} places, first {wrong[0]}; "
      "convert it again, and check the disk"
    )
  checked = ", read again and the same" if values.verify else ""
  print(f"{source} as {form} in {out}{checked}")


def _differing_leaves(
  before: Params, after: Params, dtype: str | None
) -> list[str]:
  before = traverse_util.flatten_dict(before, sep="/")
  after = traverse_util.flatten_dict(after, sep="/")
  return [
    name
    for name, leaf in before.items()
    if narrow(name, np.asarray(leaf), dtype).tobytes() != after[name].tobytes()
  ]
