"""Matmul FLOPs of every training step beside those it cannot do without.

  python benchmarks/step_cost.py [--remat=full] [--scan] [--out=FILE.json]

Nothing of full size runs: steps are traced on shapes, and the products in
their jaxprs are counted, a scan's times its length. The ideal is worked out by
hand from the layers' sizes. Then a tiny run shows that no step is compiled
twice and that no array reaches the device unasked.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.data.pipeline import make_batches
from dollar_jax.models.denoiser import Denoiser, make_wan
from dollar_jax.models.latent_reward import LatentReward, LatentRewardConfig
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.wan import WanConfig
from dollar_jax.parallel.flops import inner_jaxprs, matmul_flops
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.rewards.base import get_reward
from dollar_jax.train import config as configs
from dollar_jax.train import state as states
from dollar_jax.train.cost import (
  latent_reward_cost,
  muon_cost,
  network_cost,
  score_ideal,
  student_ideal,
)
from dollar_jax.train.distill_task import DistillTask
from dollar_jax.train.loop import Batches
from dollar_jax.train.optim import make_optimizer, make_schedule
from dollar_jax.train.reward_step import make_reward_step
from dollar_jax.train.reward_tuner import RewardTuner
from dollar_jax.train.score_step import make_score_step
from dollar_jax.train.shared_labels import Decoder
from dollar_jax.train.student_step import Student, make_student_step
from dollar_jax.train.teacher_step import make_teacher_step

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "digits"

ABLATIONS = {
  "VSD": {"cd_weight": 0.0, "reward_weight": 0.0},
  "CD": {"vsd_weight": 0.0, "reward_weight": 0.0},
  "VSD+CD": {"reward_weight": 0.0},
  "VSD+LRM": {"cd_weight": 0.0},
  "VSD+CD+LRM": {},
}
"""What each leaves out of a student's losses."""

LIMIT = 1.05
"""What a step without remat may cost, in ideals."""


def host_calls(jaxpr: Any) -> list[str]:
  """Names the equations that talk to the host while a step runs."""
  found = []
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if "callback" in name or name in ("infeed", "outfeed"):
      found.append(name)
    for inner in inner_jaxprs(equation):
      found += host_calls(inner)
  return found


@dataclasses.dataclass(frozen=True)
class Row:
  """One step's count beside its ideal.

  Attributes:
    step: its name.
    flops: matmul FLOPs in its jaxpr.
    parts: FLOPs of each part that it cannot do without.
    forward: FLOPs of one forward on the batch, the unit to show them in.
    host_calls: what in the jaxpr talks to the host.
  """

  step: str
  flops: int
  parts: dict[str, float]
  forward: int
  host_calls: list[str]

  @property
  def ratio(self) -> float:
    """Count over ideal."""
    return self.flops / sum(self.parts.values())


def count_steps(
  config: configs.TrainConfig,
  teacher: configs.TrainConfig,
  denoiser: Denoiser,
  latent: tuple[int, ...],
  text: tuple[int, int],
) -> Iterator[Row]:
  """Counts the student step of every ablation and the three other steps.

  Args:
    config: a distillation with a reward; its weights are replaced.
    teacher: a teacher's training.
    denoiser: the network.
    latent: T, H, W, C.
    text: S, D.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  reward = get_reward(config.reward.name)
  lrm = LatentReward(
    dataclasses.replace(
      config.latent_reward, kind=reward.kind, text_conditioned=reward.uses_text
    )
  )

  def make_batch(size: int) -> dict[str, Any]:
    def rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((size, *shape), dtype)

    batch = {"latents": rows(*latent), "text": rows(*text)}
    return batch | {"text_mask": rows(text[0], dtype=bool), "rewards": rows()}

  params = jax.eval_shape(lambda k: denoiser.init(k, latent, text), key)
  lrm_params = jax.eval_shape(
    lambda k, batch: lrm.init(
      k, batch["latents"], batch["text"], batch["text_mask"]
    ),
    key,
    make_batch(1),
  )["params"]
  frozen = dict.fromkeys(("teacher", "student", "fake_score"), params)
  frozen |= {
    "latent_reward": lrm_params,
    "null_text": jax.ShapeDtypeStruct(text, jnp.float32),
    "null_mask": jax.ShapeDtypeStruct(text[:1], bool),
  }

  def row(name, size, forward, parts, make, settings, params):
    optimizer = make_optimizer(settings, make_schedule(settings, teacher.steps))
    state = jax.eval_shape(
      lambda p: states.create(p, optimizer, settings.ema > 0), params
    )
    args = state, frozen, make_batch(size), key
    jaxpr = jax.make_jaxpr(make(optimizer, settings))(*args)
    if settings.name == "muon":
      parts = parts | {"muon": muon_cost(params)}
    return Row(name, matmul_flops(jaxpr), parts, forward, host_calls(jaxpr))

  size = config.data.batch_size
  net = network_cost(denoiser.config, size, latent, text)
  critic = latent_reward_cost(lrm.config, size, latent, text)
  shared = size, net.forward
  for name, changes in ABLATIONS.items():
    student = Student(denoiser, dataclasses.replace(config.distill, **changes))
    make = functools.partial(make_student_step, student, latent_reward=lrm)
    parts = student_ideal(student, net, critic)
    name = f"student {name}"
    yield row(name, *shared, parts, make, config.optimizer, params)

  parts = score_ideal(net)
  make = functools.partial(make_score_step, Student(denoiser, config.distill))
  yield row("score", *shared, parts, make, config.score_optimizer, params)

  size = teacher.data.batch_size
  net = network_cost(denoiser.config, size, latent, text)
  parts = {"teacher": net.forward + net.backward}
  make = functools.partial(
    make_teacher_step, denoiser, caption_dropout=teacher.data.caption_dropout
  )
  shared = size, net.forward
  yield row("teacher", *shared, parts, make, teacher.optimizer, params)

  size = config.reward.batch_size
  critic = latent_reward_cost(lrm.config, size, latent, text)
  parts = {"latent reward": critic.forward + critic.backward}
  make = functools.partial(make_reward_step, lrm)
  shared = size, critic.forward
  yield row("reward", *shared, parts, make, config.reward_optimizer, lrm_params)


def make_tiny_task(
  settings: configs.TrainConfig,
) -> tuple[DistillTask, Batches]:
  """A distillation of a random network that compiles in seconds."""
  latent, text = (1, 2, 2, 4), (2, 8)
  denoiser = make_wan(
    WanConfig((1, 1, 1), 2, 6, 4, 4, 8, 8, 16, num_layers=1, scan=False)
  )
  student = Student(denoiser, settings.distill)
  rng = np.random.default_rng(0)

  def draw(*shape: int) -> np.ndarray:
    return rng.normal(0.0, 0.1, shape).astype(np.float32)

  params = jax.eval_shape(
    lambda: denoiser.init(jax.random.key(0), latent, text)
  )
  codec = LinearVAE(draw(192, 4), draw(192), draw(4), (1, 8, 8))
  mesh = make_mesh()
  task = DistillTask(
    student,
    jax.tree.map(lambda leaf: draw(*leaf.shape), params),
    settings,
    {"null_text": draw(*text), "null_mask": np.ones(text[:1], bool)},
    mesh,
    RewardTuner(settings, student, Decoder(codec, mesh), latent, text, mesh),
  )
  clip = {
    "latents": draw(*latent),
    "text": draw(*text),
    "text_mask": np.ones(text[:1], bool),
    "prompt": "a 3 moving left",
  }
  size = settings.data.batch_size
  batches = make_batches([clip] * size, size, 0)
  return task, Batches(lambda: batches, range(size), mesh)


def watch_updates(updates: int = 6) -> dict[str, int]:
  """Trains a tiny student with every loss and counts what comes too late.

  Every second update refreshes the latent reward model, whose labels cross to
  the host and back by design. The others run under jax's transfer guard; on
  a CPU it sees arrays that go to the device, not those that come back.

  Returns:
    `traced` and `compiled`, functions after each kind of update was seen
    once; `guarded`, updates under the guard.

  Raises:
    jax.errors.JaxRuntimeError: for an array that was not put explicitly.
  """
  labels = {"labels": 4, "warmup_labels": 4, "batch_size": 4, "capacity": 8}
  settings = configs.TrainConfig(
    task="distill",
    steps=updates,
    log_every=1,
    data=configs.DataConfig(batch_size=4),
    distill=configs.DistillConfig(score_steps=2, reward_weight=1.0),
    reward=configs.RewardConfig(every=2, warmup_steps=1, steps=1, **labels),
    latent_reward=LatentRewardConfig(width=8, depth=1),
  )
  task, batches = make_tiny_task(settings)
  counts = {"traced": 0, "compiled": 0, "guarded": 0}
  events = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/backend_compile_duration": "compiled",
  }

  def listen(event: str, seconds: float, **_: Any) -> None:
    if event in events:
      counts[events[event]] += 1

  state, every = task.init(), settings.reward.every
  for index in range(every):
    state, _ = task.update(state, batches, index)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for index in range(every, updates):
      guarded = (index + 1) % every > 0
      with jax.transfer_guard("disallow" if guarded else "allow"):
        state, _ = task.update(state, batches, index)
      counts["guarded"] += guarded
    jax.block_until_ready(state)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
    task.close()
  return counts


def load_config(name: str) -> configs.TrainConfig:
  """Reads one of the digits' config files."""
  values = runpy.run_path(str(CONFIGS / name))["get_config"]()
  return configs.from_config_dict(values)


def main() -> None:
  """Prints the table; exits with 1 if a step costs more than it may."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--remat", default="none", help="a remat policy")
  parser.add_argument("--scan", action="store_true", help="scan over blocks")
  parser.add_argument("--out", type=pathlib.Path, help="JSON file to write")
  args = parser.parse_args()
  teacher = load_config("teacher.py")
  model = dataclasses.replace(teacher.model, remat=args.remat, scan=args.scan)
  latent, text = (2, 4, 4, model.in_channels), (4, model.text_dim)
  rows = []
  print(f"{'step':20}{'GFLOP':>9}{'ideal':>9}{'ratio':>8}  ideal, in forwards")
  for row in count_steps(
    load_config("reward.py"), teacher, make_wan(model), latent, text
  ):
    ideal = sum(row.parts.values())
    parts = (f"{n} {f / row.forward:.3g}" for n, f in row.parts.items())
    print(
      f"{row.step:20}{row.flops / 1e9:9.3f}{ideal / 1e9:9.3f}{row.ratio:8.4f}"
      f"  {ideal / row.forward:.3f} = {' + '.join(parts)}",
      flush=True,
    )
    rows.append({**dataclasses.asdict(row), "ideal": ideal, "ratio": row.ratio})
  calls = [call for row in rows for call in row["host_calls"]]
  print(f"calls of the host inside the steps: {', '.join(calls) or 'none'}")
  late = watch_updates()
  print(
    f"after the first of each: {late['traced']} functions traced, "
    f"{late['compiled']} compiled; {late['guarded']} updates under "
    'jax.transfer_guard("disallow")'
  )
  if args.out:
    result = {"jax": jax.__version__, "steps": rows, "updates": late}
    args.out.write_text(json.dumps(result, indent=2))
  over = [row["step"] for row in rows if row["ratio"] > LIMIT]
  if args.remat == "none" and over:
    sys.exit(f"over {LIMIT} times the ideal: {', '.join(over)}")
  if calls or late["traced"] or late["compiled"]:
    sys.exit("a step calls the host or is compiled twice")


if __name__ == "__main__":
  main()
