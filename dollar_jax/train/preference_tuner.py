"""A latent reward model that learns what people have voted for.

Votes compare clips that exist. They are encoded once, the model is fitted to
which of two was preferred (Bradley and Terry), and the student climbs it. New
clips get no votes, so that the model stays as it is while the student moves:
its word is worth less the further that goes, which is what a guard is for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dollar_jax.data.videos import read_video
from dollar_jax.evaluation.votes import Vote, read_votes
from dollar_jax.parallel import rules
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.train.config import TrainConfig
from dollar_jax.train.labels import LabelledBatch
from dollar_jax.train.loop import Batches, Program
from dollar_jax.train.reward_network import RewardNetwork, RewardState
from dollar_jax.train.reward_step import make_preference_step
from dollar_jax.train.shared_labels import Decoder
from dollar_jax.typing import Params, PyTree

EncodeFn = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
"""Prompts → text [B, S, D] and text_mask [B, S]."""

_ABOUT_TEXT = ("", "text")

_FAINT = 0.1
"""Deviation, in log-odds, of values that hardly tell clips apart: between two
that lie one apart the odds are 1.1 to 1. Smaller ones are not blown up."""


class PreferenceTuner:
  """Stands beside the student as `RewardTuner` does.

  Attributes:
    model: the Linen module, of whole clips; it reads the prompts unless the
      question is not about them.
    description: what must be equal for a checkpoint to fit.
    shapes: of the model's state, placed.
    decoder: makes frames, for a guard.
  """

  def __init__(
    self,
    config: TrainConfig,
    codec: Any,
    encode_text: EncodeFn,
    decoder: Decoder,
    latent_shape: tuple[int, ...],
    text_shape: tuple[int, int],
    mesh: Mesh,
  ):
    """Prepares the model; files are read by `init`.

    Args:
      config: the run.
      codec: makes latents of the clips that were voted on.
      encode_text: embeds their prompts.
      decoder: see above.
      latent_shape: T, H, W, C.
      text_shape: S, D.
      mesh: where the student is trained.
    """
    self._config, self._codec, self._mesh = config, codec, mesh
    self._encode_text, self.decoder = encode_text, decoder
    self._latent_shape = tuple(latent_shape)
    self._known: dict[str, float] | None = None
    self._network = RewardNetwork(
      config,
      "video",
      config.reward.question in _ABOUT_TEXT,
      make_preference_step,
      max(config.reward.warmup_steps, 1),
      latent_shape,
      text_shape,
      mesh,
    )
    self.model, self.shapes = self._network.model, self._network.shapes
    self.description = {"name": "votes", "model": self._network.description}

  def init(self) -> RewardState:
    """Reads the votes, encodes the clips, makes a fresh model.

    Raises:
      ValueError: if a file cannot be read, a clip is not of the model's size,
        or there are too few votes.
    """
    self.decoder.init()
    settings = self._config.reward
    votes = [
      vote
      for vote in read_votes(settings.votes)
      if settings.question in ("", vote.question)
    ]
    pairs = sorted({(vote.prompt, vote.a, vote.b) for vote in votes})
    # whole pairs: what one person said of them tells what another will
    order = np.random.default_rng(self._config.seed).permutation(len(pairs))
    held_out = round(settings.held_out * len(pairs))
    hidden = {pairs[i] for i in order[:held_out]}
    self._fitted, self._hidden = (
      [v for v in votes if ((v.prompt, v.a, v.b) in hidden) == kept]
      for kept in (False, True)
    )
    if not any(vote.choice != "tie" for vote in self._fitted):
      raise ValueError(
        f"{len(votes)} votes on {settings.question or 'any question'!r}, of "
        f"which {held_out} pairs are held out, leave no preference to learn "
        "from; collect more, or lower config.reward.held_out"
      )
    self._read_clips(votes)
    return self._network.init(columns=1)

  def _read_clips(self, votes: list[Vote]) -> None:
    """Encodes every clip and prompt once."""
    files = sorted({file for vote in votes for file in (vote.a, vote.b)})
    prompts = sorted({vote.prompt for vote in votes})
    self._clip = {file: i for i, file in enumerate(files)}
    self._prompt = {prompt: i for i, prompt in enumerate(prompts)}
    if self.model.config.text_conditioned:
      self._text, self._mask = self._encode_text(prompts)
    for file in files:  # before the others are encoded
      if not file.is_file():
        raise ValueError(
          f"{file}, which was voted on, is not there; run from where its "
          "folder lies, or make it again"
        )
    mesh = self._mesh
    if jax.process_count() > 1:  # every process encodes them for itself
      mesh = make_mesh(devices=jax.local_devices()[:1])
    codec = rules.put(self._codec, rules.replicated(mesh))
    encode = jax.jit(lambda codec, frames: codec.encode(frames))
    self._latents = np.stack(
      [np.asarray(encode(codec, self._frames(file)[None]))[0] for file in files]
    )

  def _frames(self, file: Path) -> np.ndarray:
    frames, _ = read_video(file)
    try:
      shape = self._codec.latent_shape(*frames.shape[:3])
    except ValueError as error:
      raise ValueError(f"{file} cannot be encoded: {error}") from None
    if tuple(shape) != self._latent_shape:
      raise ValueError(
        f"{file} has {frames.shape[0]} frames of {frames.shape[1]}x"
        f"{frames.shape[2]}, which is a latent of {tuple(shape)}; the model's "
        f"are {self._latent_shape}: vote on clips of its own size"
      )
    return frames

  def _batch(self, votes: list[Vote]) -> PyTree:
    """What the update takes."""
    sides = [(v.b, v.a) if v.choice == "b" else (v.a, v.b) for v in votes]
    better, worse = (
      self._latents[[self._clip[pair[side]] for pair in sides]]
      for side in (0, 1)
    )
    tie = np.array([vote.choice == "tie" for vote in votes], np.float32)
    batch = {"better": better, "worse": worse, "tie": tie}
    if self.model.config.text_conditioned:
      rows = [self._prompt[vote.prompt] for vote in votes]
      batch |= {"text": self._text[rows], "text_mask": self._mask[rows]}
    return batch

  def warm_up(
    self, state: RewardState, params: Params, batches: Batches
  ) -> tuple[RewardState, dict[str, Any]]:
    """Fits the model to the votes, `warmup_steps` updates.

    Votes leave every member an offset of its own, of which their disagreement
    would mostly consist, and log-odds of any size: each is then brought to a
    mean of 0 and a deviation of 1 over the clips, the unit of `reward_force`.
    """
    del params, batches  # nothing of the student is voted on
    settings, network, metrics = self._config.reward, state.network, {}
    for i in range(settings.warmup_steps):
      rng = np.random.default_rng([self._config.seed, i])
      few = len(self._fitted) < settings.batch_size
      rows = rng.choice(len(self._fitted), settings.batch_size, replace=few)
      batch = self._batch([self._fitted[row] for row in rows])
      network, metrics = self._network.update(network, batch, i)
    values = self._values(network.params, self._fitted + self._hidden)
    mean, std = values.mean(axis=(1, 2)), values.std(axis=(1, 2))
    network = self._network.normalise(network, mean, np.maximum(std, _FAINT))
    self._known = None
    return state.replace(network=network), metrics

  def refresh(
    self, state: RewardState, params: Params, batches: Batches, step: int
  ) -> tuple[RewardState, dict[str, Any]]:
    """Tells how well the model, which stays as it is, knows the votes.

    Returns:
      The state, and `lrm_accuracy`, the share of preferences that it has right
      among those held out, and `lrm_accuracy_fitted` among the others.
    """
    del params, batches, step
    if self._known is None:  # the model stays as it is from now on
      sets = {"lrm_accuracy": self._hidden, "lrm_accuracy_fitted": self._fitted}
      found = {k: self._accuracy(state, votes) for k, votes in sets.items()}
      self._known = {k: x for k, x in found.items() if x is not None}
    return state, dict(self._known)

  def _accuracy(self, state: RewardState, votes: list[Vote]) -> float | None:
    """Share of the preferences that the model has; ties are none."""
    votes = [vote for vote in votes if vote.choice != "tie"]
    if not votes:
      return None
    better, worse = self._values(state.network.params, votes).mean(axis=0).T
    return float((better > worse).mean())

  def _values(self, params: Params, votes: list[Vote]) -> np.ndarray:
    """What each member makes of the better and the worse, [members, V, 2]."""
    size, found = self._config.reward.batch_size, []
    for start in range(0, len(votes), size):
      # one size, or it compiles again
      rows = [votes[i % len(votes)] for i in range(start, start + size)]
      batch = self._batch(rows)
      text = batch.get("text"), batch.get("text_mask")
      sides = [
        self._network.guesses(params, [(batch[side], *text)])
        for side in ("better", "worse")
      ]
      found.append(np.stack(sides, axis=-1))
    return np.concatenate(found, axis=1)[:, : len(votes)]

  def estimate(
    self, state: RewardState, labelled: list[LabelledBatch]
  ) -> dict[str, float]:
    """`guard/latent`, the mean of what the model makes of clips."""
    rows = ((b.latents, b.text, b.text_mask) for b in labelled)
    guesses = self._network.guesses(state.network.params, rows)
    return {"guard/latent": float(guesses.mean())}

  def programs(
    self, sampler: Params, batch: PyTree, key: Any
  ) -> dict[str, Program]:
    """What a run compiles for the votes, by name."""
    del sampler, batch
    pair = dict.fromkeys(("better", "worse"), self._latent_shape)
    return {"reward": self._network.program(key, **pair, tie=())}

  def state_dict(self) -> dict[str, np.ndarray]:
    """Nothing: all is in the files, and in the network."""
    return {}

  def load_state(self, saved: dict[str, Any]) -> None:
    """Takes over nothing."""

  def close(self) -> None:
    """Nothing runs in the background."""
