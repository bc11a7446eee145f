"""Rewards: any function of a clip, by name.

A reward takes `frames` uint8 [B, F, H, W, 3] and `prompts`, a list of B
strings, and returns B numbers; higher is better. It may be any Python: a
network, a file size, a call to a service. Nothing differentiates it, but for
the baseline that climbs a reward's own gradient: see `Differentiable`.

    @register("brightness", kind="image")
    def brightness(frames, prompts):
      return frames.mean(axis=(1, 2, 3, 4))

A reward outside the package is named "MODULE:FUNCTION".
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dollar_jax.typing import Array, PyTree

KINDS = ("image", "video")
"""Scores frame by frame, or the clip as a whole."""

BUILT_IN = (
  "dollar_jax.rewards.digits",
  "dollar_jax.rewards.image_quality",
  "dollar_jax.rewards.motion",
  "dollar_jax.rewards.preference",
)
"""Modules that register the rewards of this package when imported."""

RewardFn = Callable[[np.ndarray, list[str]], Any]

_REGISTRY: dict[str, "Reward"] = {}


def no_condition(prompts: list[str]) -> np.ndarray:
  """What a reward knows of prompts that it does not read, [B, 0]."""
  return np.zeros((len(prompts), 0), np.float32)


@dataclasses.dataclass(frozen=True)
class Differentiable:
  """A reward as JAX can differentiate it.

  Attributes:
    params: what `fn` computes with: arrays, or their shapes for a plan.
    fn: `(params, pixels float32 [B, F, H, W, 3] in [0, 255], conditions [B, P])
      -> float32 [B]`, of the frames that the reward wants.
    condition: `prompts -> float32 [B, P]`, what `fn` knows of them.
    width: P.
  """

  params: PyTree
  fn: Callable[[PyTree, Array, Array], Array]
  condition: Callable[[list[str]], np.ndarray] = no_condition
  width: int = 0


MakeDifferentiable = Callable[[str, bool], Differentiable]
"""`(dtype, shapes)`: the type that its networks compute in, and whether shapes
of the params are enough."""


@dataclasses.dataclass(frozen=True)
class Reward:
  """A reward and what a model of it has to know; callable like its function.

  Attributes:
    name: the name it was asked for by.
    fn: `fn(frames uint8 [B, F, H, W, 3], prompts) -> float32 [B]`.
    kind: "image" if it is a mean of scores of single frames, so that a
      frame-wise model can learn it, else "video".
    uses_text: whether it reads the prompts.
    num_frames: frames drawn evenly, first and last included, from every clip
      before `fn` sees it; None: all.
    differentiable: makes the form that has a gradient, if there is one.
  """

  name: str
  fn: RewardFn
  kind: str = "video"
  uses_text: bool = False
  num_frames: int | None = None
  differentiable: MakeDifferentiable | None = None

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
        f"kind of reward {self.name!r} is {self.kind!r}; it must be one of "
        f"{', '.join(KINDS)}"
      )
    if self.num_frames is not None and self.num_frames < 1:
      raise ValueError(
        f"num_frames of reward {self.name!r} is {self.num_frames}; it must be "
        "at least 1, or None for every frame"
      )

  def __call__(self, frames: np.ndarray, prompts: list[str]) -> Any:
    """Calls `fn` on the frames it asked for; what it raises passes through."""
    return self.fn(self.drawn(frames), prompts)

  def drawn(self, frames: Any) -> Any:
    """The frames [B, n, H, W, 3] it asked for of clips [B, F, H, W, 3]."""
    if self.num_frames is None or self.num_frames >= frames.shape[1]:
      return frames
    drawn = np.linspace(0, frames.shape[1] - 1, self.num_frames)
    return frames[:, np.round(drawn).astype(int)]


def register(
  name: str,
  *,
  kind: str = "video",
  prompted: bool = False,
  num_frames: int | None = None,
  differentiable: MakeDifferentiable | None = None,
) -> Callable[[RewardFn], RewardFn]:
  """Makes a function known as a reward; returns it unchanged.

  Args:
    name: what `--config.reward.name` says; no colon.
    kind: "image" or "video", see `Reward`.
    prompted: whether the function reads the prompts.
    num_frames: frames it wants of every clip, see `Reward`.
    differentiable: makes the form that has a gradient, see `Differentiable`.

  Raises:
    ValueError: for a name taken by another function, or with a colon.
  """

  def decorate(fn: RewardFn) -> RewardFn:
    if ":" in name or not name:
      raise ValueError(
        f"reward name {name!r} is empty or has a colon, which is kept for "
        "MODULE:FUNCTION; use a plain word"
      )
    known = _REGISTRY.get(name)
    # the same function comes twice when its module is reloaded
    if known is not None and _origin(known.fn) != _origin(fn):
      raise ValueError(
        f"reward name {name!r} is taken by {_origin(known.fn)}; choose another"
      )
    _REGISTRY[name] = Reward(
      name, fn, kind, prompted, num_frames, differentiable
    )
    return fn

  return decorate


def known_rewards() -> list[str]:
  """Names that are registered, the package's own included, in order."""
  for module in BUILT_IN:
    importlib.import_module(module)
  return sorted(_REGISTRY)


def get_reward(name: str) -> Reward:
  """Finds a reward.

  Args:
    name: a registered name, or "MODULE:FUNCTION" for a function outside the
      package. If that function is not decorated with `register`, it is taken
      to judge whole clips and to read the prompts.

  Raises:
    ValueError: if there is no such reward, or its module does not import.
  """
  if ":" in name:
    return _from_module(name)
  known = known_rewards()
  if name not in known:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(
      f"reward {name!r} is unknown; {hint}known are {', '.join(known)}, and "
      "MODULE:FUNCTION names one of your own"
    )
  return _REGISTRY[name]


def need(module: str, reward: str) -> Any:
  """Imports what only one reward needs.

  Raises:
    ValueError: if it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f"reward {reward!r} needs the package {error.name or module}, which is "
      "not installed; run `pip install 'dollar_jax[rewards]'`"
    ) from error


def import_function(name: str, what: str) -> Callable[..., Any]:
  """Imports a function outside the package.

  Args:
    name: "MODULE:FUNCTION".
    what: it is, for the error.

  Raises:
    ValueError: if there is none, or its module does not import.
  """
  module_name, _, function = name.partition(":")
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # whatever a stranger's module raises
    raise ValueError(
      f"module {module_name!r} of {what} {name!r} does not import "
      f"({type(error).__name__}: {error}); is its folder on PYTHONPATH?"
    ) from error
  fn = getattr(module, function, None) if function else None
  if not callable(fn):
    named = [n for n in vars(module) if callable(getattr(module, n))]
    close = difflib.get_close_matches(function, named, 1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "check its spelling"
    raise ValueError(
      f"module {module_name!r} has no function {function!r} for {what} "
      f"{name!r}; {hint}"
    )
  return fn


def _from_module(name: str) -> Reward:
  fn = import_function(name, "reward")
  for known in _REGISTRY.values():
    if known.fn is fn:
      return dataclasses.replace(known, name=name)
  if isinstance(fn, Reward):
    return fn
  return Reward(name, fn, kind="video", uses_text=True)


def _origin(fn: Any) -> str:
  module = getattr(fn, "__module__", "?")
  return f"{module}:{getattr(fn, '__qualname__', repr(fn))}"
