"""Prints the parameters and the memory of every published transformer.

  .venv/bin/python benchmarks/model_sizes.py

Nothing is downloaded or allocated: the shapes are those of the modules.
"""

import math
from collections.abc import Iterator

import jax

from dollar_jax.interop.keymaps import TRANSFORMERS
from dollar_jax.interop.networks import template
from dollar_jax.interop.published import PUBLISHED, published_recipe


def table() -> Iterator[str]:
  """Rows of a Markdown table."""
  yield "| transformer | parameters, M | bfloat16, GB | latents | tokens |"
  yield "|---|---|---|---|---|"
  for name, config in PUBLISHED.items():
    kind = next(a for a in TRANSFORMERS.values() if a.config is type(config))
    leaves = jax.tree.leaves(template(kind.module(config)))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    shape = published_recipe(config).latent_shape
    tokens = math.prod(shape[:3]) // math.prod(patch(config))
    size = "x".join(map(str, shape))
    yield (
      f"| {name} | {count / 1e6:,.1f} | {2 * count / 1e9:.1f} | {size} "
      f"| {tokens:,} |"
    )


def patch(config) -> tuple[int, int, int]:
  """Latent frames, rows and columns of a token."""
  return getattr(config, "patch", None) or config.patch_size


if __name__ == "__main__":
  print("\n".join(table()))
