"""Classifier-free guidance in its standard form `u + w (c - u)`."""

from collections.abc import Callable

import jax.numpy as jnp

from dollar_jax.typing import Array, PredictFn

TextPredictFn = Callable[[Array, Array, Array, Array], Array]
"""`f(x_t, t, text [B,S,D], text_mask [B,S]) -> x0`."""


def guide(conditional: Array, unconditional: Array, scale: float) -> Array:
  """Returns `u + w (c - u)`: 0 is unconditional, 1 conditional."""
  return unconditional + scale * (conditional - unconditional)


def from_legacy_scale(scale: float) -> float:
  """Converts the scale of `c + w (c - u)` to the standard form's, `w + 1`."""
  return scale + 1.0


def guided(
  predict: TextPredictFn,
  text: Array,
  text_mask: Array,
  null_text: Array,
  null_mask: Array,
  scale: float,
) -> PredictFn:
  """Binds a text to `predict` and guides it, both branches in one call.

  The network sees a batch of 2B, so that one matrix product serves both
  branches. At scale 1 the null branch vanishes, and the batch stays B.

  Args:
    predict: `f(x_t, t, text, text_mask) -> x0`.
    text: [B, S, D] embeddings of the prompts.
    text_mask: [B, S], True where there is a word.
    null_text: [S, D] embedding of the null (or negative) prompt.
    null_mask: [S].
    scale: standard guidance scale w.

  Returns:
    `f(x_t [B,...], t [B]) -> x0 [B,...]`.
  """
  if scale == 1.0:
    return lambda x_t, t: predict(x_t, t, text, text_mask)
  both_text = jnp.concatenate(
    [text, jnp.broadcast_to(null_text, text.shape).astype(text.dtype)]
  )
  both_mask = jnp.concatenate(
    [text_mask, jnp.broadcast_to(null_mask, text_mask.shape)]
  )

  def predict_guided(x_t: Array, t: Array) -> Array:
    x0 = predict(
      jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both_text, both_mask
    )
    conditional, unconditional = jnp.split(x0, 2)
    return guide(conditional, unconditional, scale)

  return predict_guided
