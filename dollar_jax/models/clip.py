"""CLIP: a tower of images and one of texts that share a space of features.

Same numerics as transformers' `CLIPModel` (arXiv 2103.00020): class token and
learnt positions, pre-norm blocks, the text read at its end token under a causal
mask. Norms and softmax stay in float32 whatever `dtype` is.
"""

import dataclasses
import functools
import math

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dollar_jax.models.layers import Dense, LayerNorm
from dollar_jax.typing import Array

ACTIVATIONS = {
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
  "gelu": functools.partial(nn.gelu, approximate=False),
}
"""By the name in config.json: OpenAI's own weights, and most later ones."""

HIGHEST_ID = 2
"""An `eos_token_id` that old config.json files have: the end token is then the
one of the highest id."""

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
  """Size of one tower; names are those of transformers' config.json.

  Attributes:
    hidden_size: D, a multiple of the number of heads.
    intermediate_size: width of the feed-forward layers.
    num_hidden_layers: number of blocks.
    num_attention_heads: N.
    hidden_act: one of `ACTIVATIONS`.
    layer_norm_eps: epsilon of every norm.
  """

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int = 12
  num_attention_heads: int
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and (type(value) is not int or value < 1):
        raise ValueError(
          f"{field.name} of a CLIP tower is {value!r}; it must be a whole "
          "number of at least 1"
        )
    if self.hidden_act not in ACTIVATIONS:
      raise ValueError(
        f"hidden_act of a CLIP tower is {self.hidden_act!r}; use one of "
        f"{sorted(ACTIVATIONS)}"
      )
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"hidden_size {self.hidden_size} does not divide among "
        f"num_attention_heads={self.num_attention_heads}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
  """The tower of images; defaults are those of ViT-B/32.

  Attributes:
    image_size: rows and columns of an image, a multiple of `patch_size`.
    patch_size: rows and columns that a token covers.
  """

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    if self.image_size % self.patch_size:
      raise ValueError(
        f"image_size {self.image_size} does not divide into patches of "
        f"patch_size={self.patch_size}"
      )

  @property
  def num_positions(self) -> int:
    """Tokens of an image: its class and its patches."""
    return 1 + (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TowerConfig):
  """The tower of texts; defaults are those of ViT-B/32.

  Attributes:
    vocab_size: number of token ids.
    max_position_embeddings: S, tokens of a text at most.
    eos_token_id: the token whose place is read, at its first occurrence;
      `HIGHEST_ID` reads the place of the highest id instead.
  """

  hidden_size: int = 512
  intermediate_size: int = 2048
  num_attention_heads: int = 8
  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407

  def __post_init__(self):
    super().__post_init__()
    if self.eos_token_id >= max(self.vocab_size, HIGHEST_ID + 1):
      raise ValueError(
        f"eos_token_id is {self.eos_token_id}, and vocab_size is "
        f"{self.vocab_size}; give the id of a token"
      )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Both towers.

  Attributes:
    vision_config: the tower of images.
    text_config: the tower of texts.
    projection_dim: P, width of the features.
    dtype: compute type, one of `DTYPES` (ours).
  """

  vision_config: CLIPVisionConfig = CLIPVisionConfig()
  text_config: CLIPTextConfig = CLIPTextConfig()
  projection_dim: int = 512
  dtype: str = "float32"

  def __post_init__(self):
    if type(self.projection_dim) is not int or self.projection_dim < 1:
      raise ValueError(
        f"projection_dim is {self.projection_dim!r}; it must be a whole number "
        "of at least 1"
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype is {self.dtype!r}; use one of {list(DTYPES)}")


VIT_H_14 = CLIPConfig(
  CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    hidden_act="gelu",
    patch_size=14,
  ),
  CLIPTextConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="gelu",
  ),
  projection_dim=1024,
)
"""OpenCLIP's ViT-H/14, from which PickScore and HPSv2 are tuned."""


class Attention(nn.Module):
  """Multi-head self-attention with biases."""

  config: TowerConfig
  dtype: str

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Array:
    """Attends within `x [B, L, D]`; `mask [B or 1, 1, L, L]` True: is seen."""
    c = self.config
    dtype = jnp.dtype(self.dtype)
    query, key, value = (
      einops.rearrange(
        Dense(c.hidden_size, ("embed", "heads"), dtype, name=name)(x),
        "b l (n k) -> b l n k",
        n=c.num_attention_heads,
      )
      for name in ("to_q", "to_k", "to_v")
    )
    out = jax.nn.dot_product_attention(query, key, value, mask=mask)
    out = einops.rearrange(out, "b l n k -> b l (n k)")
    return Dense(c.hidden_size, ("heads", "embed"), dtype, name="to_out")(out)


class Block(nn.Module):
  """Attention and feed-forward, each behind a norm."""

  config: TowerConfig
  dtype: str

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> tuple[Array, None]:
    """Maps [B, L, D] to ([B, L, D], None), the form `nn.scan` wants."""
    c = self.config
    dtype = jnp.dtype(self.dtype)
    h = LayerNorm(c.layer_norm_eps, name="norm1")(x).astype(dtype)
    x = x + Attention(c, self.dtype, name="attn")(h, mask)
    h = LayerNorm(c.layer_norm_eps, name="norm2")(x).astype(dtype)
    h = Dense(c.intermediate_size, ("embed", "mlp"), dtype, name="up")(h)
    h = ACTIVATIONS[c.hidden_act](h)
    x = x + Dense(c.hidden_size, ("mlp", "embed"), dtype, name="down")(h)
    return x, None


class VisionTower(nn.Module):
  """Features of images.

  Attributes:
    config: its size.
    features: P.
    dtype: compute type.
  """

  config: CLIPVisionConfig
  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    """Maps pixels as `clip_images.preprocess` makes them to features [B, P].

    Args:
      pixels: float32 [B, H, W, 3], H and W the config's `image_size`.

    Returns:
      float32 [B, P].

    Raises:
      ValueError: for another shape.
    """
    c = self.config
    dtype = jnp.dtype(self.dtype)
    if pixels.ndim != 4 or pixels.shape[1:] != (*2 * (c.image_size,), 3):
      raise ValueError(
        f"pixels have shape {pixels.shape}; this tower takes "
        f"[B, {c.image_size}, {c.image_size}, 3]"
      )
    patches = einops.rearrange(
      pixels,
      "b (h p) (w q) c -> b (h w) (p q c)",
      p=c.patch_size,
      q=c.patch_size,
    )
    project = functools.partial(Dense, dtype=dtype, use_bias=False)
    axes = ("patch", "embed")
    x = project(c.hidden_size, axes, name="patch_embedding")(patches)
    first = _table(self, "class_embedding", (c.hidden_size,))
    first = jnp.broadcast_to(first, (len(x), 1, c.hidden_size))
    x = jnp.concatenate([first.astype(dtype), x], axis=1)
    shape = (c.num_positions, c.hidden_size)
    x = x + _table(self, "position_embedding", shape).astype(dtype)
    x = LayerNorm(c.layer_norm_eps, name="norm_in")(x).astype(dtype)
    x = _run_blocks(c, self.dtype, x, None)[:, 0]
    x = LayerNorm(c.layer_norm_eps, name="norm_out")(x)
    axes = ("embed", "mlp")
    return project(self.features, axes, name="projection")(x).astype("float32")


class TextTower(nn.Module):
  """Features of texts.

  Attributes:
    config: its size.
    features: P.
    dtype: compute type.
  """

  config: CLIPTextConfig
  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Array, mask: Array | None = None) -> Array:
    """Maps token ids to features, not normalised.

    Args:
      ids: int32 [B, S], with an end token; what follows that changes nothing.
      mask: bool [B, S], False where attention sees no token; None sees all
        that went before.

    Returns:
      float32 [B, P].

    Raises:
      ValueError: if S is more than the config's `max_position_embeddings`.
    """
    c = self.config
    dtype = jnp.dtype(self.dtype)
    length = ids.shape[1]
    if length > c.max_position_embeddings:
      raise ValueError(
        f"a text has {length} tokens; this tower takes at most "
        f"{c.max_position_embeddings}: cut the text"
      )
    shape = (c.vocab_size, c.hidden_size)
    x = _table(self, "token_embedding", shape)[ids]
    shape = (c.max_position_embeddings, c.hidden_size)
    x = x + _table(self, "position_embedding", shape)[:length]
    seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if mask is not None:
      seen = seen & mask[:, None, None, :].astype(bool)
    x = _run_blocks(c, self.dtype, x.astype(dtype), seen)
    if c.eos_token_id == HIGHEST_ID:
      place = jnp.argmax(ids, axis=1)
    else:
      place = jnp.argmax(ids == c.eos_token_id, axis=1)
    x = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
    x = LayerNorm(c.layer_norm_eps, name="norm_out")(x)
    project = Dense(
      self.features, ("embed", "mlp"), dtype, use_bias=False, name="projection"
    )
    return project(x).astype("float32")


class CLIP(nn.Module):
  """Both towers and the scale of their cosines."""

  config: CLIPConfig

  def setup(self) -> None:
    """Names the parts."""
    c = self.config
    self.vision = VisionTower(c.vision_config, c.projection_dim, c.dtype)
    self.text = TextTower(c.text_config, c.projection_dim, c.dtype)
    start = nn.initializers.constant(math.log(1 / 0.07))
    self.logit_scale = self.param("logit_scale", start, ())

  def __call__(
    self, pixels: Array, ids: Array, mask: Array | None = None
  ) -> Array:
    """How well each image fits each text.

    Args:
      pixels: as `VisionTower` takes them, [B, H, W, 3].
      ids: as `TextTower` takes them, [M, S].
      mask: bool [M, S] or None.

    Returns:
      float32 [B, M], exp(logit_scale) cos(image, text).
    """
    images, texts = self.image_features(pixels), self.text_features(ids, mask)
    scale = jnp.exp(self.logit_scale.astype("float32"))
    return scale * (normalize(images) @ normalize(texts).T)

  def image_features(self, pixels: Array) -> Array:
    """Features [B, P] of images, see `VisionTower`."""
    return self.vision(pixels)

  def text_features(self, ids: Array, mask: Array | None = None) -> Array:
    """Features [B, P] of texts, see `TextTower`."""
    return self.text(ids, mask)


def normalize(features: Array) -> Array:
  """Scales features [..., P] to length 1."""
  return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def _table(module: nn.Module, name: str, shape: tuple[int, ...]) -> Array:
  """A learnt table of width D."""
  axes = (*(len(shape) - 1) * (None,), "embed")
  init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
  return module.param(name, init, shape)


def _run_blocks(
  config: TowerConfig, dtype: str, x: Array, mask: Array | None
) -> Array:
  """Runs a tower's blocks, stacked under "blocks" on a leading axis."""
  stack = nn.scan(
    Block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,
    length=config.num_hidden_layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return stack(config, dtype, name="blocks")(x, mask)[0]
