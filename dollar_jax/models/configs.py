"""Sizes of the networks, as frozen dataclasses that check themselves.

Nothing here imports JAX, so that a config is read, and a mistake in it told,
before JAX is there.
"""

import dataclasses
import math

KERNELS = ("auto", "xla", "cudnn", "splash")
"""What may carry attention out; "auto" is the best that can."""

CONTEXTS = ("auto", "ulysses", "ring")
"""How tokens on several devices meet; "auto" is Ulysses where heads divide."""

REMATS = (
  "none",
  "products",
  "narrow",
  "results",
  "dots",
  "attention",
  "full",
  "offload",
)
"""What a backward pass recomputes; see `blocks.REMAT_POLICIES`."""

REWARD_KINDS = ("image", "video")
"""Frame-wise, or over frames as well."""


@dataclasses.dataclass(frozen=True)
class WanConfig:
  """Size of a Wan transformer; names are those of diffusers' config.json.

  Attributes:
    patch_size: latent frames, rows and columns a token covers.
    num_attention_heads: N.
    attention_head_dim: K, even; the width is N * K.
    in_channels: latent channels C in.
    out_channels: latent channels out.
    text_dim: width of the text embeddings.
    freq_dim: width of the sinusoidal time embedding.
    ffn_dim: width of the feed-forward layers.
    num_layers: number of blocks.
    cross_attn_norm: whether the cross-attention's input norm has weights
      (True) or is absent (False).
    eps: epsilon of every norm.
    image_dim: width of the image embeddings; None takes no image.
    added_kv_proj_dim: width of the embedded image in each block, N * K; None
      without an image.
    pos_embed_seq_len: image embeddings that have learnt positions, those of
      first and last frame; None learns none.
    dtype: compute type, "float32" or "bfloat16" (ours).
    remat: one of `REMATS` (ours).
    scan: whether blocks run under `nn.scan`, stacked parameters (ours).
    attention: what carries attention out, one of `KERNELS` (ours).
    context: how tokens on several devices meet, one of `CONTEXTS` (ours).
  """

  patch_size: tuple[int, int, int] = (1, 2, 2)
  num_attention_heads: int = 12
  attention_head_dim: int = 128
  in_channels: int = 16
  out_channels: int = 16
  text_dim: int = 4096
  freq_dim: int = 256
  ffn_dim: int = 8960
  num_layers: int = 30
  cross_attn_norm: bool = True
  eps: float = 1e-6
  image_dim: int | None = None
  added_kv_proj_dim: int | None = None
  pos_embed_seq_len: int | None = None
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True
  attention: str = "auto"
  context: str = "auto"

  def __post_init__(self):
    if len(self.patch_size) != 3:
      raise ValueError(
        f"patch_size is {self.patch_size}; give frames, rows and columns"
      )
    if self.attention_head_dim % 2 or self.attention_head_dim < 6:
      raise ValueError(
        f"attention_head_dim is {self.attention_head_dim}; rotary positions "
        "need an even number of at least 6"
      )
    added = None if self.image_dim is None else self.width
    if self.added_kv_proj_dim != added:
      raise ValueError(
        f"added_kv_proj_dim is {self.added_kv_proj_dim}; with image_dim "
        f"{self.image_dim} it must be {added}"
      )
    check_remat(self.remat)
    check_names(self.attention, self.context)

  @property
  def width(self) -> int:
    """Width of the residual stream, N * K."""
    return self.num_attention_heads * self.attention_head_dim

  @property
  def smallest_inputs(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the least that the transformer can be called with."""
    shapes = {
      "x": (1, *self.patch_size, self.in_channels),
      "clock": (1,),
      "text": (1, 1, self.text_dim),
    }
    if self.image_dim is not None:
      shapes["image"] = (1, self.pos_embed_seq_len or 1, self.image_dim)
    return shapes


@dataclasses.dataclass(frozen=True)
class CogVideoXConfig:
  """Size of a CogVideoX transformer; names are those of diffusers' config.json.

  Attributes:
    num_attention_heads: N.
    attention_head_dim: K, a multiple of 16; the width is N * K.
    in_channels: latent channels C in.
    out_channels: latent channels out.
    time_embed_dim: width of the time embedding.
    text_embed_dim: width of the text embeddings.
    num_layers: number of blocks.
    attention_bias: whether queries, keys and values have a bias.
    sample_width: latent columns of the size it was trained at.
    sample_height: latent rows.
    sample_frames: video frames.
    patch_size: latent rows and columns that a token covers.
    patch_size_t: latent frames that a token covers (1.5); None is one (1.0).
    temporal_compression_ratio: video frames a latent frame.
    max_text_seq_length: words S.
    norm_eps: epsilon of the norms, those of queries and keys aside.
    spatial_interpolation_scale: divides the rows and columns of sine positions.
    temporal_interpolation_scale: divides their frames.
    use_rotary_positional_embeddings: rotary positions, or sine waves.
    patch_bias: whether the patch embedding has a bias; in 1.5 it always has.
    dtype: compute type, "float32" or "bfloat16" (ours).
    remat: one of `REMATS` (ours).
    scan: whether blocks run under `nn.scan`, stacked parameters (ours).
    attention: what carries attention out, one of `KERNELS` (ours).
    context: how tokens on several devices meet, one of `CONTEXTS` (ours).
  """

  num_attention_heads: int = 30
  attention_head_dim: int = 64
  in_channels: int = 16
  out_channels: int = 16
  time_embed_dim: int = 512
  text_embed_dim: int = 4096
  num_layers: int = 30
  attention_bias: bool = True
  sample_width: int = 90
  sample_height: int = 60
  sample_frames: int = 49
  patch_size: int = 2
  patch_size_t: int | None = None
  temporal_compression_ratio: int = 4
  max_text_seq_length: int = 226
  norm_eps: float = 1e-5
  spatial_interpolation_scale: float = 1.875
  temporal_interpolation_scale: float = 1.0
  use_rotary_positional_embeddings: bool = False
  patch_bias: bool = True
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True
  attention: str = "auto"
  context: str = "auto"

  def __post_init__(self):
    if self.attention_head_dim % 16:
      raise ValueError(
        f"attention_head_dim is {self.attention_head_dim}; the positions need "
        "a multiple of 16"
      )
    check_remat(self.remat)
    check_names(self.attention, self.context)

  @property
  def width(self) -> int:
    """Width of the residual stream, N * K."""
    return self.num_attention_heads * self.attention_head_dim

  @property
  def text_dim(self) -> int:
    """Width of the text embeddings, by the name it has for Wan."""
    return self.text_embed_dim

  @property
  def has_patch_bias(self) -> bool:
    """Whether the patch embedding has a bias."""
    return self.patch_bias or self.patch_size_t is not None

  @property
  def patch(self) -> tuple[int, int, int]:
    """Latent frames, rows and columns that a token covers."""
    return (self.patch_size_t or 1, self.patch_size, self.patch_size)

  @property
  def smallest_inputs(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the least that the transformer can be called with."""
    return {
      "x": (1, *self.patch, self.in_channels),
      "clock": (1,),
      "text": (1, 1, self.text_embed_dim),
    }


@dataclasses.dataclass(frozen=True)
class LatentRewardConfig:
  """Size of a latent reward model.

  Attributes:
    kind: "image" (frame-wise) or "video".
    width: channels of every layer.
    depth: number of convolutional blocks.
    text_conditioned: whether the reward depends on the prompt.
    members: networks in the ensemble, each with its own beginning.
    caution: deviations of the members that are taken off their mean: where
      they disagree, nothing is known that is worth climbing.
    dtype: compute type, "float32" or "bfloat16"; parameters, pooling, head
      and result are float32.
  """

  kind: str = "image"
  width: int = 64
  depth: int = 2
  text_conditioned: bool = False
  members: int = 1
  caution: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.kind not in REWARD_KINDS:
      raise ValueError(
        f"kind of the latent reward model is {self.kind!r}; it must be one of "
        f"{', '.join(REWARD_KINDS)}"
      )
    least = {"width": 1, "depth": 1, "members": 1, "caution": 0}
    for name, limit in least.items():
      if not limit <= getattr(self, name) < math.inf:
        raise ValueError(
          f"{name} of the latent reward model is {getattr(self, name)}; it "
          f"must be at least {limit}"
        )


def check_names(kernel: str, context: str) -> None:
  """Checks the names of a kernel and of a way that tokens meet.

  Raises:
    ValueError: if there is none of that name.
  """
  if kernel not in KERNELS:
    raise ValueError(f"attention is {kernel!r}; use one of {list(KERNELS)}")
  if context not in CONTEXTS:
    raise ValueError(f"context is {context!r}; use one of {list(CONTEXTS)}")


def check_remat(name: str) -> None:
  """Checks the name of a rematerialisation policy.

  Raises:
    ValueError: if there is none of that name.
  """
  if name not in REMATS:
    raise ValueError(f"remat is {name!r}; use one of {list(REMATS)}")
