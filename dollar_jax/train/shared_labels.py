"""Labelling shared by the processes of a run, each with its own decoder."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dollar_jax.parallel import processes, rules
from dollar_jax.parallel.mesh import make_mesh, platform_of
from dollar_jax.rewards.mixture import Mixture
from dollar_jax.rewards.scoring import Patience
from dollar_jax.train.labels import LabelCounts, LabelledBatch, Labeller
from dollar_jax.train.loop import Program
from dollar_jax.train.reward_config import RewardConfig
from dollar_jax.typing import Array


class Decoder:
  """Makes frames of latents, on this process' own devices.

  Attributes:
    shapes: of the codec's arrays, placed.
  """

  def __init__(self, codec: Any, mesh: Mesh):
    """Prepares it; nothing is put on the devices yet.

    Args:
      codec: its `decode` makes frames uint8 [B, F, H, W, 3] of latents; a
        tree of arrays, or of shapes for a plan.
      mesh: where the run is trained.
    """
    if jax.process_count() > 1:  # a process decodes its own share
      mesh = make_mesh(devices=jax.local_devices())
    self._mesh, self._given, self._codec = mesh, codec, None
    self.shapes = rules.placed(codec, rules.replicated(mesh))

    def decode(codec: Any, x0: Array) -> Array:
      # every device decodes, those that share a video's tokens too
      return codec.decode(rules.over_all_devices(x0, mesh))

    self._decode = jax.jit(decode)

  def init(self) -> None:
    """Puts the codec on the devices, once."""
    if self._codec is None:
      self._codec = rules.put(self._given, rules.replicated(self._mesh))

  def __call__(self, x0: Array) -> Array:
    """Decodes latents [B, T, H, W, C] that lie on these devices."""
    return self._decode(self._codec, x0)

  def program(self, x0: jax.ShapeDtypeStruct) -> Program:
    """What a run compiles, for latents of placed shapes."""
    return Program(self._decode, (self.shapes, x0))

  @property
  def on_cpu(self) -> bool:
    """Whether these devices are CPUs."""
    return platform_of(self._mesh) == "cpu"


class SharedLabeller:
  """A `Labeller` in every process, each for its share of a batch."""

  def __init__(
    self,
    decoder: Decoder,
    rewards: Mixture,
    settings: RewardConfig,
    workers: int = 0,
  ):
    """Starts this process' labeller.

    Args:
      decoder: makes the frames.
      rewards: what to score with.
      settings: how long and how often to ask, and when to stop the run.
      workers: threads; 0 labels in line.
    """
    self._labeller = Labeller(
      decoder,
      rewards,
      workers=workers,
      max_failures=settings.max_failures,
      patience=Patience(settings.timeout, settings.retries),
    )
    self._waiting: list[LabelledBatch] = []

  @property
  def counts(self) -> LabelCounts:
    """What this process has done so far; assign it after a resume."""
    return self._labeller.counts

  @counts.setter
  def counts(self, counts: LabelCounts) -> None:
    self._labeller.counts = counts

  def submit(
    self, step: int, x0: Array, text: Array, mask: Array, prompts: list[str]
  ) -> None:
    """Has this process label its share of a global batch.

    Args:
      step: the training step, kept with the labels.
      x0: float32 [B, T, H, W, C], sharded.
      text: float32 [B, S, D].
      mask: bool [B, S].
      prompts: B strings.

    Raises:
      ValueError, Exception: as `Labeller.submit`.
    """
    share = processes.share_of_rows(len(x0))
    if len(share) == len(x0):
      self._labeller.submit(step, x0, text, mask, prompts)
      return
    x0, text, mask = processes.to_host((x0, text, mask))
    mesh = make_mesh(devices=jax.local_devices())
    batch = ("batch", *[None] * (x0.ndim - 1))
    place = NamedSharding(mesh, rules.spec(batch, x0[share].shape, mesh))
    with jax.set_mesh(mesh):  # the others have work of their own
      own = jax.device_put(x0[share], place)
      prompts = [prompts[i] for i in share]
      self._labeller.submit(step, own, text[share], mask[share], prompts)

  def collect(self, until: float, size: int) -> list[LabelledBatch]:
    """What every process has labelled, all shares together.

    Args:
      until: labels of samples that were drawn at this step or before are
        waited for.
      size: B.
    """
    self._waiting += self._labeller.collect(until)
    ready = processes.gather_rows(np.array([len(self._waiting)])).min()
    labelled, self._waiting = self._waiting[:ready], self._waiting[ready:]

    def whole(share: np.ndarray | None) -> np.ndarray | None:
      return None if share is None else processes.gather_shares(share, size)

    return [
      LabelledBatch(**{k: whole(v) for k, v in vars(batch).items()})
      for batch in labelled
    ]

  def failures(self) -> dict[str, int]:
    """Labels that failed, and calls made again, so far in all processes."""
    mine = self.counts
    counts = np.array([[mine.failed_labels, mine.retries]])
    failed, retries = processes.gather_rows(counts).sum(axis=0)
    return {"label_failures": int(failed), "label_retries": int(retries)}

  def close(self) -> None:
    """Ends the labelling."""
    self._labeller.close()
