"""Times the digits' score and student step; prints seconds as JSON.

Runs in the checkout of any revision: `benchmarks.against_release` calls it.
"""

import json
import runpy
import time

try:
  from dollar_jax import startup

  startup.prepare()  # as the command does
except ImportError:
  pass
import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.parallel.rules import by_batch
from dollar_jax.train.config import from_config_dict
from dollar_jax.train.models import open_base
from dollar_jax.train.runs import make_task

jax.config.update("jax_enable_compilation_cache", False)
values = runpy.run_path("configs/digits/student.py")["get_config"]()
config = from_config_dict(values.to_dict())
mesh = make_mesh(config.mesh)
base = open_base(config)
task, _ = make_task(config, base, mesh)
text = base.null_prompt["null_text"].shape


def rows(*shape, dtype=jnp.float32):
  shape = config.data.batch_size, *shape
  return jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch(mesh))


batch = {
  "latents": rows(*base.recipe.latent_shape),
  "text": rows(*text),
  "text_mask": rows(text[0], dtype=bool),
}
random = np.random.default_rng(0)


def fill(shape):
  if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  if np.issubdtype(shape.dtype, np.floating):
    values = 0.02 * np.abs(random.normal(size=shape.shape))
  else:
    values = np.zeros(shape.shape)
  return jax.device_put(values.astype(shape.dtype), shape.sharding)


found = {}
programs = task.programs(batch)
for name in ("score", "student"):
  program = programs[name]
  began = time.perf_counter()
  lowered = program.run.trace(*program.args).lower()
  traced = time.perf_counter()
  run = lowered.compile()
  compiled = time.perf_counter()
  args = list(jax.tree.map(fill, program.args))
  seconds = []
  for _ in range(12):
    start = time.perf_counter()
    out = jax.block_until_ready(run(*args))
    seconds.append(time.perf_counter() - start)
    args[0] = out[0]
  found |= {
    f"{name} step: trace, s": traced - began,
    f"{name} step: compile, s": compiled - traced,
    f"{name} step: run, s": float(np.median(seconds[2:])),
  }
for kind in ("trace", "compile"):
  found[f"both steps: {kind}, s"] = sum(
    found[f"{name} step: {kind}, s"] for name in ("score", "student")
  )
found["both steps: trace and compile, s"] = (
  found["both steps: trace, s"] + found["both steps: compile, s"]
)
print(json.dumps(found))
