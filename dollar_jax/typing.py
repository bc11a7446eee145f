"""Array aliases and the shape letters used in every docstring.

B batch, T latent frames, H W latent height and width, C channels, L video
tokens, S text tokens, D width, N heads, K head size; F frames of pixels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Array = jax.Array
"""A device array (or a tracer of one)."""

Params = Mapping[str, Any]
"""A tree of parameters, as Linen's `init` returns under "params"."""

PyTree = Any
"""Any tree of arrays."""

PredictFn = Callable[[Array, Array], Array]
"""`f(x_t [B,T,H,W,C], t [B]) -> x0 [B,T,H,W,C]`: a network with its text
already bound."""
