"""What one trained network carries from step to step."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from dollar_jax.parallel import rules
from dollar_jax.train.optim import update_ema
from dollar_jax.typing import Array, Params, PyTree

LossFn = Callable[[Params, PyTree, Array], tuple[Array, dict[str, Array]]]
"""`f(params, batch, key) -> (loss, metrics)`."""


@struct.dataclass
class NetworkState:
  """Parameters, their average, the optimiser and the counts of updates.

  Attributes:
    params: float32 master parameters.
    ema: their average, or None.
    opt_state: the optimiser's state.
    updates: int32, updates applied.
    skipped: int32, updates skipped in all for a non-finite loss or gradient.
    skipped_in_row: int32, the same without an applied one between.
  """

  params: Params
  ema: Params | None
  opt_state: PyTree
  updates: Array
  skipped: Array
  skipped_in_row: Array

  @property
  def averaged(self) -> Params:
    """The average if there is one, else the parameters."""
    return self.params if self.ema is None else self.ema


def create(
  params: Params, optimizer: optax.GradientTransformation, ema: bool
) -> NetworkState:
  """A fresh state; the average starts as a copy of the parameters."""
  # every count is an array of its own: a donated buffer serves one leaf
  return NetworkState(
    params=params,
    ema=jax.tree.map(jnp.copy, params) if ema else None,
    opt_state=optimizer.init(params),
    updates=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_row=jnp.zeros((), jnp.int32),
  )


def placed(state: NetworkState, axes: PyTree, mesh: Mesh) -> NetworkState:
  """Shapes of a network's state, each where it belongs.

  Args:
    state: of arrays or shapes.
    axes: names of the axes of its parameters.
    mesh: where to.
  """
  params = rules.placed(
    state.params, rules.param_shardings(axes, state.params, mesh)
  )
  return rules.placed(state, rules.like_params(state, params, mesh))


def gradients(
  loss_fn: LossFn, params: Params, batch: PyTree, key: Array, accumulate: int
) -> tuple[Array, dict[str, Array], Params]:
  """Loss, metrics and gradients, over `accumulate` microbatches.

  Part i of a batch are its rows i, i + accumulate, …, so that each part lies
  on as many devices as the batch; losses, metrics and gradients are the means
  over the parts.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if accumulate == 1:
    (loss, metrics), grads = grad_fn(params, batch, key)
    return loss, metrics, grads

  def split(x: Array) -> Array:
    x = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
    return jnp.swapaxes(x, 0, 1)

  parts = jax.tree.map(split, batch)
  # what `key` itself splits into may have drawn what the parts are of
  keys = jax.random.split(
    jax.random.fold_in(key, zlib.crc32(b"microbatches")), accumulate
  )

  def one(part: PyTree, part_key: Array) -> PyTree:
    (loss, metrics), grads = grad_fn(params, part, part_key)
    return loss, metrics, grads

  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(total: PyTree, inputs: tuple) -> tuple[PyTree, None]:
    return jax.tree.map(jnp.add, total, one(*inputs)), None

  total, _ = jax.lax.scan(body, zeros, (parts, keys))
  return jax.tree.map(lambda x: x / accumulate, total)


def apply_gradients(
  state: NetworkState,
  loss: Array,
  grads: Params,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
) -> tuple[NetworkState, dict[str, Array]]:
  """Updates the network, or skips the update if anything is not finite.

  Returns:
    The next state and the metrics `grad_norm` and `skipped_in_row`.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    ema = update_ema(ema, params, ema_decay, state.updates)

  def keep(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

  bad = 1 - finite.astype(jnp.int32)
  state = NetworkState(
    params=keep(params, state.params),
    ema=keep(ema, state.ema),
    opt_state=keep(opt_state, state.opt_state),
    updates=state.updates + 1 - bad,
    skipped=state.skipped + bad,
    skipped_in_row=(state.skipped_in_row + 1) * bad,
  )
  return state, {"grad_norm": norm, "skipped_in_row": state.skipped_in_row}
