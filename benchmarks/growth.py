"""How time and memory grow with tokens, batch and layers; one table.

  .venv/bin/python -m benchmarks.growth

A Wan transformer and its gradients, float32, on this machine: one number is
doubled twice, all others stay. Time is the median of seven runs, memory what
XLA plans for temporaries, compiling one run with an empty cache. The last
column is the exponent p of `cost ~ size^p` over the two doublings, beside the
one that the arithmetic says. A CPU needs to be idle for the times.
"""

import dataclasses
import math
import time

from dollar_jax import startup

startup.prepare()

import jax  # noqa: E402 (after what it reads)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from dollar_jax.models.configs import WanConfig  # noqa: E402
from dollar_jax.models.denoiser import make_wan  # noqa: E402
from dollar_jax.parallel.compilation import compiler_options  # noqa: E402

RUNS = 7
SIZES = (1, 2, 4)
CONFIG = WanConfig(
  patch_size=(1, 1, 1),
  num_attention_heads=4,
  attention_head_dim=32,
  in_channels=16,
  out_channels=16,
  text_dim=64,
  freq_dim=128,
  ffn_dim=512,
  num_layers=2,
  scan=False,
)
TOKENS, TEXT = (2, 16, 16), 16


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of the gradient of one batch.

  Attributes:
    seconds: to run.
    megabytes: of temporaries.
    compile_seconds: to trace and compile.
  """

  seconds: float
  megabytes: float
  compile_seconds: float


def measure(
  tokens: int = 1, batch: int = 1, layers: int = 1, scan: bool = False
) -> Cost:
  """Compiles and runs the network's gradient; each size is a multiple."""
  config = dataclasses.replace(
    CONFIG, num_layers=CONFIG.num_layers * layers, scan=scan
  )
  denoiser = make_wan(config)
  latent = (TOKENS[0] * tokens, *TOKENS[1:], CONFIG.in_channels)
  text = TEXT, CONFIG.text_dim
  params = denoiser.init(jax.random.key(0), latent, text)
  random = np.random.default_rng(0)

  def rows(*shape: int) -> jax.Array:
    return jnp.asarray(random.normal(size=(2 * batch, *shape)), jnp.float32)

  def loss(params, x, t, text):
    return jnp.mean(denoiser.predict_x0(params, x, t, text) ** 2)

  args = params, rows(*latent), jnp.full(2 * batch, 0.5), rows(*text)
  options = compiler_options(jax.default_backend())
  began = time.perf_counter()
  run = jax.jit(jax.grad(loss)).lower(*args).compile(options)
  compiled = time.perf_counter() - began
  seconds = []
  for _ in range(RUNS + 1):
    began = time.perf_counter()
    jax.block_until_ready(run(*args))
    seconds.append(time.perf_counter() - began)
  temporary = run.memory_analysis().temp_size_in_bytes / 1e6
  return Cost(float(np.median(seconds[1:])), temporary, compiled)


def main() -> None:
  """Prints the table."""
  jax.config.update("jax_enable_compilation_cache", False)
  count = math.prod(TOKENS)
  print(f"tokens {count} x 1, 2, 4; batch 2 x; layers {CONFIG.num_layers} x")
  print("| doubled | of | x 1 | x 2 | x 4 | exponent | arithmetic says |")
  print("|---" * 7 + "|")
  between = "1 to 2: attention is quadratic"
  rows = (
    ("tokens", {}, "seconds", "run, ms", 1e3, between),
    ("tokens", {}, "megabytes", "temporaries, MB", 1.0, between),
    ("batch", {}, "seconds", "run, ms", 1e3, "1"),
    ("batch", {}, "megabytes", "temporaries, MB", 1.0, "1"),
    ("layers", {}, "seconds", "run, ms", 1e3, "1"),
    ("layers", {}, "compile_seconds", "compile, s", 1.0, "1"),
    ("layers", {"scan": True}, "seconds", "run with scan, ms", 1e3, "1"),
    (
      "layers",
      {"scan": True},
      "compile_seconds",
      "compile with scan, s",
      1.0,
      "0",
    ),
  )
  known: dict[tuple, Cost] = {}
  for size_of, others, entry, label, unit, said in rows:
    values = []
    for size in SIZES:
      key = size_of, size, *others
      if key not in known:
        known[key] = measure(**{size_of: size}, **others)
      values.append(unit * getattr(known[key], entry))
    exponent = math.log2(values[-1] / values[0]) / 2
    cells = " | ".join(f"{value:.3g}" for value in values)
    print(
      f"| {size_of} | {label} | {cells} | {exponent:.2f} | {said} |", flush=True
    )


if __name__ == "__main__":
  main()
