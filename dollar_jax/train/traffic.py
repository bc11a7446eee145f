"""What the devices of a training step must send each other, by hand.

Nothing here looks at a program; `parallel.hlo` counts those. Bytes are a
device's, of one call, as there: results of gathers, exchanges and sums,
operands of reduce-scatters.

A network that is applied gathers its kernels over "fsdp", in the type they are
used in: once forwards, once more backwards where blocks are made again, whose
gradients are then reduce-scattered. Ulysses exchanges queries, keys, values
and results, of which only these are kept where attention is; a ring passes
keys and values on, backwards queries with their gradients. Over "tensor" a
block adds up what each of its parts gives.
"""

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dollar_jax.models.attention import Choice
from dollar_jax.models.configs import CogVideoXConfig
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.parallel.mesh import batch_shards
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.student_step import Student
from dollar_jax.typing import Params

_ALWAYS_FLOAT32 = ("time_embedder", "time_proj", "linear", "norm_out_linear")
"""Layers that are computed in float32 whatever the compute type."""

Bytes = Counter[str]
"""By kind of collective, a name in `hlo.KINDS`."""


@dataclasses.dataclass(frozen=True)
class NetworkTraffic:
  """What one transformer costs on one mesh.

  Attributes:
    gathered: bytes of its kernels, whole along "fsdp".
    blocks: those of the blocks among them.
    text: those of what embeds the text among them.
    graded: bytes, whole, of the kernels or adapters that get a gradient.
    summed: bytes of what is on every device and gets a gradient.
    exchange: bytes of queries of one video in one block.
    layers: blocks.
    size: K, numbers of a head.
    width: bytes of a number.
    choice: how attention is carried out.
    mesh: sizes of its axes.
    outputs: results in a block that "tensor" adds up.
    remat: whether blocks are made again backwards.
    remakes_attention: whether attention is, too.
  """

  gathered: int
  blocks: int
  text: int
  graded: int
  summed: int
  exchange: int
  layers: int
  size: int
  width: int
  choice: Choice
  mesh: dict[str, int]
  outputs: int
  remat: bool = False
  remakes_attention: bool = False

  def with_remat(self, name: str) -> "NetworkTraffic":
    """The same under another policy."""
    again = name in ("full", "offload", "dots")
    return dataclasses.replace(
      self, remat=name != "none", remakes_attention=again
    )

  def forward(self, videos: int) -> Bytes:
    """One application to a device's videos, without gradient."""
    bytes_ = Counter({"all-gather": self.gathered})
    return bytes_ + self._attention(videos)

  def walked(self, steps: int, videos: int) -> Bytes:
    """One application after another to the same device's videos.

    The text is embedded alike at every step, so that XLA takes it out of the
    loop.
    """
    bytes_ = self.forward(videos)
    bytes_ = Counter({kind: steps * size for kind, size in bytes_.items()})
    bytes_["all-gather"] -= max(steps - 1, 0) * self.text
    return bytes_

  def trained(self, videos: int) -> Bytes:
    """One application and its gradient."""
    bytes_ = self.forward(videos)
    if self.remat:
      bytes_["all-gather"] += self.blocks
      if self.remakes_attention:
        bytes_ += self._attention(videos)
      elif self.choice.context == "ulysses":
        bytes_["all-to-all"] += 3 * self.exchange * videos * self.layers
    bytes_ += self._attention(videos, backward=True)
    if self.mesh["fsdp"] > 1:
      bytes_["reduce-scatter"] += self.graded
    bytes_["all-reduce"] += self.summed
    if self.mesh["data"] > 1:
      bytes_["all-reduce"] += self.graded // self.mesh["fsdp"]
    return bytes_

  def _attention(self, videos: int, backward: bool = False) -> Bytes:
    bytes_: Bytes = Counter()
    exchange = self.exchange * videos * self.layers
    ways = self.mesh["context"]
    if self.choice.context == "ulysses":
      bytes_["all-to-all"] += 4 * exchange
    elif self.choice.context == "ring":
      sent = 2 * (ways - 1) * exchange
      if backward:
        # queries and gradients, two sums a token; float32 gradients of queries
        rest = 2 * 4 / (self.size * self.width)
        sent = (ways - 1) * (2 + rest) * exchange
        sent += ways * exchange * 4 // self.width
      bytes_["collective-permute"] += int(sent)
    if self.mesh["tensor"] > 1:
      whole = exchange * self.mesh["tensor"]
      bytes_["all-reduce"] += self.outputs * whole
    return bytes_


def network_traffic(
  denoiser: Denoiser,
  params: Params,
  choice: Choice,
  mesh: Mesh,
  latent: tuple[int, ...],
  text: tuple[int, int],
  adapters: Params | None = None,
) -> NetworkTraffic:
  """Traffic of a transformer on latents [T, H, W, C], text [S, D].

  Args:
    denoiser: the network.
    params: its parameters' shapes, placed.
    choice: how it attends.
    mesh: where it is.
    latent: T, H, W, C.
    text: S, D.
    adapters: shapes of what is trained in place of the parameters, placed.
  """
  c, sizes = denoiser.config, dict(mesh.shape)
  if denoiser.boundary is not None:  # one expert answers
    params = next(iter(params.values()))
  kept = jnp.dtype(c.dtype).itemsize
  gathered, _ = _split(params, sizes, kept)
  blocks, _ = _split(params, sizes, kept, "block")
  embedding, _ = _split(params, sizes, kept, "text")
  graded, summed = _split(params, sizes, kept)
  if adapters is not None:
    lent, _ = _split(adapters, sizes, kept)
    gathered, blocks = gathered + lent, blocks + lent
    graded, summed = _split(adapters, sizes, kept)
  joint = isinstance(c, CogVideoXConfig)
  patch = c.patch if joint else c.patch_size
  tokens = math.prod(latent[:3]) // math.prod(patch)
  tokens += text[0] if joint else 0
  mine = -(-tokens // sizes["context"])
  exchange = mine * c.width // sizes["tensor"] * kept
  if sizes["fsdp"] * sizes["data"] * sizes["context"] == 1:
    summed = 0
  elif not joint and sizes["context"] > 1:
    # gradients of the text's keys and values, of which every device has all
    summed += 2 * text[0] * c.width * kept * c.num_layers
  return NetworkTraffic(
    gathered=gathered,
    blocks=blocks,
    text=embedding,
    graded=graded,
    summed=summed,
    exchange=exchange,
    layers=c.num_layers,
    size=c.attention_head_dim,
    width=kept,
    choice=choice,
    mesh=sizes,
    outputs=2 if joint else 3,
  ).with_remat(c.remat)


def _split(
  params: Params, mesh: dict[str, int], kept: int, prefix: str = ""
) -> tuple[int, int]:
  """Bytes of what "fsdp" splits, whole, and of all else, as float32.

  Args:
    params: shapes, placed.
    mesh: sizes of its axes.
    kept: bytes of a number in the compute type.
    prefix: only parameters below a name that begins so.
  """
  split = rest = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [key.key for key in path]
    if not any(name.startswith(prefix) for name in names):
      continue
    own = math.prod(leaf.sharding.shard_shape(leaf.shape))
    if "fsdp" not in str(leaf.sharding.spec):
      rest += 4 * own
    else:
      number = 4 if set(names) & set(_ALWAYS_FLOAT32) else kept
      split += own * mesh["fsdp"] * number
  return split, rest


def step_traffic(
  config: TrainConfig, student: Student | None, net: NetworkTraffic, mesh: Mesh
) -> dict[str, Bytes]:
  """Traffic of every step whose networks are transformers, by its name.

  Args:
    config: the run.
    student: its sampler and losses; None trains a teacher.
    net: of the network.
    mesh: where it is.
  """
  videos = -(-config.data.batch_size // batch_shards(mesh))
  net = net.with_remat(config.remat)

  def parts(optimizer: str) -> tuple[int, int]:
    """Microbatches, and a device's videos in one."""
    count = getattr(config, optimizer).accumulate
    return count, -(-videos // count)

  def times(count: int, bytes_: Bytes) -> Bytes:
    return Counter({kind: count * size for kind, size in bytes_.items()})

  count, rows = parts("optimizer")
  if student is None:
    return {"teacher": times(count, net.trained(rows))}
  c, steps = config.distill, len(student.grid)
  pairs = 1 if c.guidance == 1.0 else 2
  rollouts = -(-videos // steps)
  consistency = net.trained(rows) + net.forward(rows)
  consistency += net.forward(pairs * rows)
  found = {}
  if c.cd_warmup:
    found["warm-up"] = times(count, consistency)
  simulated = c.inputs == "simulate"
  part: Bytes = Counter()
  if c.acts_on_samples:
    part += net.trained(rows)
  if c.vsd_weight:
    part += net.forward(pairs * rows) + net.forward(rows)
  if c.cd_weight:
    part += consistency
  if c.ddpo_weight:
    part += net.trained(rows)
  found["student"] = times(count, part)
  if simulated and c.acts_on_samples:
    found["student"] += net.walked(steps - 1, rollouts)
  sampler = net.forward(videos)
  if simulated:
    sampler = net.walked(steps, rollouts)
  if c.vsd_weight:
    count, rows = parts("score_optimizer")
    fitted = net.with_remat(config.score_remat or config.remat)
    found["score"] = times(count, fitted.trained(rows)) + sampler
  if c.reward_weight:
    found["sampler"] = sampler
  return found
