"""Classifier-free guidance in its standard form."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.diffusion.guidance import from_legacy_scale, guide, guided

number = st.floats(-10, 10)


@hypothesis.given(number, number, number)
def test_legacy_scale_means_the_same(conditional, unconditional, scale):
  legacy = conditional + scale * (conditional - unconditional)
  ours = guide(conditional, unconditional, from_legacy_scale(scale))
  assert ours == pytest.approx(legacy, abs=1e-9)


def test_scale_0_is_unconditional_and_1_conditional():
  conditional, unconditional = np.array([3.0, 5.0]), np.array([1.0, -2.0])
  np.testing.assert_array_equal(
    guide(conditional, unconditional, 0.0), unconditional
  )
  np.testing.assert_array_equal(
    guide(conditional, unconditional, 1.0), conditional
  )


class Network:
  """Depends on every argument, and remembers how it was called."""

  def __init__(self):
    self.batches = []

  def __call__(self, x_t, t, text, text_mask):
    self.batches.append(x_t.shape[0])
    words = jnp.where(text_mask[..., None], text, 0.0).sum((1, 2))
    return jnp.sin(x_t * (1 + t)[:, None] + words[:, None])


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  arrays = {
    "x_t": rng.standard_normal((3, 7)),
    "t": rng.uniform(size=3),
    "text": rng.standard_normal((3, 4, 5)),
    "null_text": rng.standard_normal((4, 5)),
  }
  arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
  arrays["text_mask"] = np.arange(4) < np.array([[1], [2], [4]])
  arrays["null_mask"] = np.array([True, False, True, False])
  return arrays


def _predict(network, inputs, scale):
  names = ("text", "text_mask", "null_text", "null_mask")

  @jax.jit
  def predict(x_t, t, *words):
    return guided(network, *words, scale)(x_t, t)

  words = (inputs[name] for name in names)
  return predict(inputs["x_t"], inputs["t"], *words)


branch = jax.jit(lambda *inputs: Network()(*inputs))


def _branches(inputs):
  x_t, t = inputs["x_t"], inputs["t"]
  conditional = branch(x_t, t, inputs["text"], inputs["text_mask"])
  null = (np.stack([inputs[f"null_{n}"]] * 3) for n in ("text", "mask"))
  return np.asarray(conditional), np.asarray(branch(x_t, t, *null))


@pytest.mark.parametrize("scale", [0.0, 2.5, 7.0, -1.0])
def test_one_batched_call_equals_two(inputs, scale):
  network = Network()
  result = _predict(network, inputs, scale)
  assert network.batches == [6]
  conditional, unconditional = _branches(inputs)
  assert float(np.abs(conditional - unconditional).max()) > 0.1
  np.testing.assert_allclose(
    result,
    unconditional + scale * (conditional - unconditional),
    rtol=1e-5,
    atol=1e-6,
  )


def test_at_scale_1_the_null_branch_is_not_computed(inputs):
  network = Network()
  result = _predict(network, inputs, 1.0)
  assert network.batches == [3]
  np.testing.assert_array_equal(result, _branches(inputs)[0])
