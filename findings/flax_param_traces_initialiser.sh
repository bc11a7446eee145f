#!/usr/bin/env bash
# flax 0.12.8, Linen: applying a module runs every parameter's initialiser again,
# abstractly, each time the module is traced.
#
# `self.param(name, init, shape)` of a parameter that is there compares its shape
# with the one that `init` would give, and learns that by `jax.eval_shape`. One
# trace of an initialiser is much more work than the layer's own: of a network with
# hundreds of parameters that a step calls several times, it was half of the time
# of tracing. `self.get_variable("params", name)` looks the parameter up and runs
# nothing.
#
# Seen: "initialiser runs while applying: 3 of 3 by param, 0 of 3 by get_variable"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/param.py" <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp

runs = []


def init(key, shape):
  runs.append(shape)
  return jax.random.normal(key, shape)


class Layer(nn.Module):
  look_up: bool

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      name = f"weight_{i}"
      if self.look_up and self.has_variable("params", name):
        weight = self.get_variable("params", name)
      else:
        weight = self.param(name, init, (4, 4))
      x = x @ weight
    return x


def while_applying(look_up):
  layer, x = Layer(look_up), jnp.ones((2, 4))
  variables = layer.init(jax.random.key(0), x)
  del runs[:]
  jax.jit(layer.apply).lower(variables, x)
  return len(runs)


by_param, by_look_up = while_applying(False), while_applying(True)
print(
  f"initialiser runs while applying: {by_param} of 3 by param, "
  f"{by_look_up} of 3 by get_variable"
)
assert (by_param, by_look_up) == (3, 0)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/param.py"
