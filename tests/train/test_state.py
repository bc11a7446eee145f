"""Gradients in parts are gradients of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.train import state

gradients = jax.jit(state.gradients, static_argnums=(0, 4))


def loss_fn(params, batch, key):
  error = batch["x"] @ params["w"] - batch["y"]
  return jnp.mean(error**2), {"error": jnp.mean(error)}


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_parts_of_a_batch_give_the_means_of_the_whole(accumulate):
  rng = np.random.default_rng(0)
  batch = {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6)}
  params = {"w": rng.normal(size=3)}
  key = jax.random.key(0)
  wanted = gradients(loss_fn, params, batch, key, 1)
  found = gradients(loss_fn, params, batch, key, accumulate)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted
  )


def test_a_part_has_rows_from_all_over_the_batch():
  """So that a batch split over devices stays where it is."""

  def tell(params, batch, key):
    return params["w"] * 0.0, {"rows": batch["row"]}

  params, batch = {"w": np.float32(1)}, {"row": np.arange(6.0)}
  _, metrics, _ = gradients(tell, params, batch, jax.random.key(0), 2)
  # means over the parts [0, 2, 4] and [1, 3, 5]
  np.testing.assert_array_equal(metrics["rows"], [0.5, 2.5, 4.5])
