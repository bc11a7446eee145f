"""What each training step cannot do without: its matmul FLOPs, by hand.

Nothing here looks at a program; `parallel.flops` counts those.
"""

import dataclasses
import math
from typing import Any

import jax

from dollar_jax.models.configs import (
  CogVideoXConfig,
  LatentRewardConfig,
  WanConfig,
)
from dollar_jax.train.student_step import Student


@dataclasses.dataclass(frozen=True)
class Cost:
  """Matmul FLOPs of one network on one batch, by hand.

  Attributes:
    forward: the network.
    backward: gradient with respect to its parameters.
    to_input: gradient with respect to its latent alone.
    attention: of the forward, what products of tokens with tokens cost.
    wider: of the blocks' forward, products that are wider than what they are
      made of.
    narrower: those that are narrower.
  """

  forward: int
  backward: int
  to_input: int = 0
  attention: int = 0
  wider: int = 0
  narrower: int = 0


def network_cost(
  c: WanConfig | CogVideoXConfig,
  batch: int,
  latent: tuple[int, ...],
  text: tuple[int, int],
) -> Cost:
  """Cost of a transformer on `batch` latents [T, H, W, C], text [S, D].

  In the backward pass a layer costs its forward once for its weights and once
  for its input; the layers that are fed data need no gradient there.
  """
  count = _cogvideox if isinstance(c, CogVideoXConfig) else _wan
  parts = (2 * batch * n for n in count(c, latent, text))
  first, attention, wider, narrower, rest = parts
  rest += attention + wider + narrower
  return Cost(first + rest, first + 2 * rest, 0, attention, wider, narrower)


def _wan(
  c: WanConfig, latent: tuple[int, ...], text: tuple[int, int]
) -> tuple[int, int, int, int, int]:
  """Multiply-adds: first layers, attention, wider, narrower, the rest."""
  patch = math.prod(c.patch_size)
  tokens, words, width = math.prod(latent[:3]) // patch, text[0], c.width
  inputs = patch * c.in_channels * tokens + c.freq_dim + text[1] * words
  block = tokens * (4 + 2) * width**2 + words * 2 * width**2
  half = c.num_layers * tokens * width * c.ffn_dim
  attention = c.num_layers * 2 * tokens * (tokens + words) * width
  rest = (1 + 6 + words) * width**2 + c.num_layers * block
  rest += tokens * width * patch * c.out_channels
  return inputs * width, attention, half, half, rest


def _cogvideox(
  c: CogVideoXConfig, latent: tuple[int, ...], text: tuple[int, int]
) -> tuple[int, int, int, int, int]:
  """As `_wan`."""
  patch, width, time = math.prod(c.patch), c.width, c.time_embed_dim
  tokens = math.prod(latent[:3]) // patch
  joint = tokens + text[0]
  first = patch * c.in_channels * tokens * width + text[1] * text[0] * width
  first += width * time
  half = c.num_layers * joint * 4 * width**2
  tables = c.num_layers * 2 * time * 6 * width
  attention = c.num_layers * 2 * joint**2 * width
  rest = time**2 + c.num_layers * joint * 4 * width**2 + time * 2 * width
  rest += tokens * width * patch * c.out_channels
  return first, attention, half + tables, half, rest


def latent_reward_cost(
  c: LatentRewardConfig,
  batch: int,
  latent: tuple[int, ...],
  text: tuple[int, int],
) -> Cost:
  """Cost of the latent reward model on `batch` latents [T, H, W, C]."""
  w, size, video = c.width, list(latent[:3]), c.kind == "video"
  first = math.prod(size) * latent[3] * 2 * w
  rest = math.prod(size) * 3 * 2 * w**2
  for block in range(c.depth):
    if block:  # long axes are halved; an image model keeps its frames
      free = (video, True, True)
      size = [
        -(-n // 2) if f and n >= 8 else n
        for f, n in zip(free, size, strict=True)
      ]
    rest += math.prod(size) * (9 + (3 if video else 1)) * w**2
  rest += size[0] * (w**2 + w)
  words = (text[1] * w, c.depth * 2 * w**2) if c.text_conditioned else (0, 0)
  each = 2 * batch * c.members
  first, rest, *words = (each * n for n in (first, rest, *words))
  return Cost(
    forward=first + rest + sum(words),
    backward=first + words[0] + 2 * (rest + words[1]),
    to_input=first + rest,
  )


def muon_cost(params: Any) -> int:
  """FLOPs of Muon's five Newton-Schulz iterations on every matrix."""
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == "kernel":
      short, long = sorted(leaf.shape[-2:])
      products = 2 * short**2 * long + short**3
      total += 5 * 2 * products * math.prod(leaf.shape[:-2])
  return total


def student_ideal(
  student: Student, net: Cost, critic: Cost
) -> dict[str, float]:
  """FLOPs of each part of a student step, by the weights it is given."""
  c, steps = student.config, len(student.grid)
  guided = net.forward * (1 if c.guidance == 1.0 else 2)
  trained = net.forward + net.backward
  parts = {}
  if c.acts_on_samples:
    if c.inputs == "simulate":
      parts["rollout"] = net.forward * (steps - 1) / steps
    parts["student"] = trained
  if c.vsd_weight:
    parts |= {"teacher": guided, "fake score": net.forward}
  if c.reward_weight:
    parts["latent reward"] = critic.forward + critic.to_input
  if c.cd_weight:
    parts |= {"CD student": trained, "CD teacher": guided}
    parts["CD target"] = net.forward
  if c.ddpo_weight:
    parts["DDPO student"] = trained
  return parts


def score_ideal(net: Cost) -> dict[str, float]:
  """FLOPs of each part of a fake score's step."""
  return {
    "samples": net.forward,
    "fake score": net.forward + net.backward,
  }
