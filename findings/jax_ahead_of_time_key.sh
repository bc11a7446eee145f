#!/usr/bin/env bash
# jax 0.10.2: a step that was compiled ahead of time is compiled again, as a whole,
# if the shape of one argument said too exactly where it lies.
#
# `jitted.trace(shapes).lower().compile()` fills the cache that a later call of
# `jitted` looks into, so that steps can be compiled side by side before a run
# begins. Shapes of parameters and batches carry the sharding of the mesh, as the
# arrays do. A random key that `jax.random.key` has made lies on the same, only
# device, but is committed to none: if its shape carries the mesh's sharding, too,
# the call finds nothing and hands the whole step to XLA a second time, without a
# word. With a shape that says nothing of devices it is found.
#
# Seen: "compilations of step when called: 1 with a placed key shape, 0 without"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/key.py" <<'PYTHON'
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

seen = []


class Listener(logging.Handler):
  def emit(self, record):
    if record.getMessage().startswith("Compiling jit(step)"):
      seen.append(1)


logging.getLogger("jax").addHandler(Listener())
logging.getLogger("jax").propagate = False
jax.config.update("jax_log_compiles", True)
mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
place = NamedSharding(mesh, PartitionSpec())


def later(placed):
  def step(x, key):
    return jnp.sin(x) + jax.random.normal(key, x.shape)

  jitted = jax.jit(step)
  x = jax.device_put(jnp.ones(4), place)
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  key = jax.eval_shape(lambda: jax.random.key(0))
  if placed:
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=place)
  jitted.trace(shape, key).lower().compile()
  del seen[:]
  jitted(x, jax.random.key(1)).block_until_ready()
  return len(seen)


with_place, without = later(True), later(False)
print(
  f"compilations of step when called: {with_place} with a placed key shape, "
  f"{without} without"
)
assert (with_place, without) == (1, 0)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/key.py"
