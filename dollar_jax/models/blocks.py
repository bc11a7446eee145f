"""What the video transformers share: patches as tokens, a stack of blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax

from dollar_jax.models.lora import COLLECTION
from dollar_jax.parallel.context import RESIDUALS
from dollar_jax.typing import Array, PyTree

BLOCK_INPUT = "block_input"
"""Name of what enters a block, for remat policies."""

_both = jax.checkpoint_policies.save_from_both_policies


def _cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
  """Keeps what cuDNN's attention gives, which has no names to keep it by."""
  return primitive.name.startswith("dot_product_attention_fwd")


_ATTENTION = _both(
  jax.checkpoint_policies.save_only_these_names("attention", RESIDUALS), _cudnn
)


def _attention_and(keep: Callable[[int, int], bool]) -> Callable[..., bool]:
  """Keeps what attention gave, and products without a batch.

  Args:
    keep: whether to keep a product of sums of so many terms that is so wide: a
      number of it costs as much to make again as its sum is long.
  """

  def products(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    if primitive.name != "dot_general":
      return False
    (summed, _), (batched, _) = parameters["dimension_numbers"]
    if batched:
      return False
    left, right = shapes
    terms = math.prod(left.shape[axis] for axis in summed)
    return keep(terms, right.size // terms)

  return _both(_ATTENTION, products)


REMAT_POLICIES = {
  "full": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "attention": _ATTENTION,
  "results": _attention_and(lambda terms, width: terms > width),
  "narrow": _attention_and(lambda terms, width: terms >= width),
  "products": _attention_and(lambda terms, width: True),
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[BLOCK_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
"""Named rematerialisation policies: "full" keeps what enters a block, "offload"
keeps it in the host's memory, "dots" products without a batch, "attention" what
attention gave; "results" that and products narrower than what they are made of,
as the feed-forward layers' are, "narrow" those as wide, too, "products" all
without a batch. "none" keeps every activation."""


def repeat_blocks(
  module: nn.Module, block: type[nn.Module], h: Array, *inputs: Any
) -> Array:
  """Runs `num_layers` blocks, as `remat` and `scan` of the config say.

  Call it inside a module's `__call__`: the parameters are that module's, under
  "blocks" on a leading axis with `scan`, else under "block_0", "block_1" …

  Args:
    module: the transformer, which has a `config`.
    block: takes that config; maps `(h, *inputs)` to `(h, None)`.
    h: [B, L, D].
    *inputs: the same for every block.

  Returns:
    [B, L, D].
  """
  config = module.config
  if config.scan:
    stack = nn.scan(
      _rematerialised(block, config),
      variable_axes={"params": 0, COLLECTION: 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=config.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(config, name="blocks")(h, *inputs)[0]
  for i in range(config.num_layers):
    name = f"block_{i}"
    if module.is_initializing():
      h, _ = block(config, name=name)(h, *inputs)
    else:
      own = {k: tree[name] for k, tree in module.variables.items()}
      h = _apply_block(block, config, own, h, *inputs)
  return h


def _rematerialised(block: type[nn.Module], config: Any) -> type[nn.Module]:
  if config.remat == "none":
    return block
  policy = REMAT_POLICIES[config.remat]
  return nn.remat(block, policy=policy, prevent_cse=not config.scan)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_block(
  block: type[nn.Module], config: Any, variables: PyTree, h: Array, *inputs: Any
) -> Array:
  """Applies one block; jitted, so that equal blocks are traced once."""
  return _rematerialised(block, config)(config).apply(variables, h, *inputs)[0]


def token_grid(
  shape: tuple[int, ...], patch: tuple[int, int, int], channels: int
) -> tuple[int, int, int]:
  """Tokens along time, height and width of latents [B, T, H, W, C].

  Raises:
    ValueError: if the latent does not divide into patches, or its channels
      are not the model's.
  """
  if len(shape) != 5 or shape[-1] != channels:
    raise ValueError(
      f"latents have shape {tuple(shape)}; this transformer takes "
      f"[B, T, H, W, {channels}]"
    )
  sizes = tuple(zip(shape[1:4], patch, strict=True))
  if any(size % step for size, step in sizes):
    raise ValueError(
      f"latents of {tuple(shape[1:4])} (T, H, W) do not divide into patches "
      f"of {tuple(patch)}; crop or pad the video"
    )
  return tuple(size // step for size, step in sizes)


def to_tokens(x: Array, patch: tuple[int, int, int]) -> Array:
  """Latents [B, T, H, W, C] as patches [B, L, i j k C]."""
  return einops.rearrange(
    x,
    "b (t i) (h j) (w k) c -> b (t h w) (i j k c)",
    i=patch[0],
    j=patch[1],
    k=patch[2],
  )


def to_video(
  x: Array, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> Array:
  """Inverse of `to_tokens` for a `token_grid`."""
  return einops.rearrange(
    x,
    "b (t h w) (i j k c) -> b (t i) (h j) (w k) c",
    t=grid[0],
    h=grid[1],
    w=grid[2],
    i=patch[0],
    j=patch[1],
    k=patch[2],
  )
