"""The benchmarks count and time what they say they do."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  against_diffusers,
  bad_rewards,
  convert_memory,
  decode_memory,
  failures,
  frechet_bias,
  labelling_cost,
  prepare_speed,
  rewards_on_digits,
  run_overhead,
  sampling_speed,
  step_cost,
)
from dollar_jax.data import videos
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.latent_reward import LatentReward, LatentRewardConfig
from dollar_jax.models.wan import WanConfig
from dollar_jax.models.wan_vae import WanVAEConfig
from dollar_jax.parallel.flops import matmul_flops
from dollar_jax.train import config as configs
from dollar_jax.train.cost import latent_reward_cost

A, SQUARE = jnp.ones((3, 5)), jnp.ones((4, 4))


def flops(fn, *args):
  return matmul_flops(jax.make_jaxpr(fn)(*args))


def scanned(x):
  return jax.lax.scan(lambda y, _: (y @ y, None), x, None, 6)


def test_calls_of_the_host_are_found_in_loops():
  def body(y, _):
    jax.debug.callback(print, y[0])
    return jax.pure_callback(np.sin, y, y), None

  jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, None, 3))(A)
  assert step_cost.host_calls(jaxpr) == ["debug_callback", "pure_callback"]
  assert step_cost.host_calls(jax.make_jaxpr(scanned)(SQUARE)) == []


WAN = WanConfig((1, 2, 2), 2, 6, 3, 3, 7, 8, 20, num_layers=2)
LATENT, TEXT = (2, 8, 4, 3), (3, 7)


def count_steps(model, inputs="simulate"):
  """A row a step, at sizes that are all different."""
  student = configs.TrainConfig(
    task="distill",
    data=configs.DataConfig(batch_size=8),
    distill=configs.DistillConfig(inputs=inputs, reward_weight=1.0),
    reward=configs.RewardConfig(batch_size=5),
    latent_reward=LatentRewardConfig(width=10, depth=2),
  )
  teacher = configs.TrainConfig(
    data=configs.DataConfig(batch_size=6),
    optimizer=configs.OptimizerConfig(name="muon", ema=0.9),
  )
  return step_cost.count_steps(student, teacher, make_wan(model), LATENT, TEXT)


def test_no_step_does_more_than_its_ideal():
  rows = {row.step: row for row in count_steps(WAN)}
  assert len(rows) == len(step_cost.ABLATIONS) + 3
  # the hand count is exact, so that any hidden product shows
  exact = dict.fromkeys(rows, 1.0)
  assert {name: row.ratio for name, row in rows.items()} == exact
  assert not any(row.host_calls for row in rows.values())
  parts = {name: set(row.parts) for name, row in rows.items()}
  assert not {"rollout", "fake score"} & parts["student CD"]
  assert not {"CD teacher", "CD student"} & parts["student VSD+LRM"]


def test_blocks_without_scan_and_inputs_from_data_cost_no_more():
  model = dataclasses.replace(WAN, num_layers=1, scan=False)
  row = next(count_steps(model, "data"))
  assert row.ratio == 1.0
  assert list(row.parts) == ["student", "teacher", "fake score"]


def test_a_forward_too_many_shows():
  row = next(count_steps(dataclasses.replace(WAN, remat="full")))
  assert row.ratio > step_cost.LIMIT


@pytest.mark.parametrize("kind, text", [("image", False), ("video", True)])
def test_hand_count_of_the_latent_reward_model(kind, text):
  config = LatentRewardConfig(kind, 10, 3, text_conditioned=text)
  model = LatentReward(config)
  x0, text = jnp.ones((2, 9, 8, 4, 3)), jnp.ones((2, *TEXT))
  params = jax.eval_shape(model.init, jax.random.key(0), x0, text)

  def total(params, x0):
    return jnp.sum(model.apply(params, x0, text))

  cost = latent_reward_cost(config, 2, x0.shape[1:], TEXT)
  both = [flops(jax.value_and_grad(total, i), params, x0) for i in (0, 1)]
  assert flops(total, params, x0) == cost.forward
  assert both == [cost.forward + cost.backward, cost.forward + cost.to_input]


def test_no_step_is_compiled_twice_and_no_array_moves_unasked():
  late = step_cost.watch_updates()
  assert late == {"traced": 0, "compiled": 0, "guarded": 2}


@pytest.fixture(scope="module")
def base():
  config = WanConfig((1, 1, 1), 2, 6, 4, 4, 8, 8, 16, num_layers=1, scan=False)
  return sampling_speed.random_pipeline(configs.TrainConfig(model=config))


def test_a_guided_teacher_costs_two_forwards_a_step(base):
  text = jnp.ones((3, 4, 8)), jnp.ones((3, 4), bool)
  null = text[0][0], text[1][0]

  def cost(recipe):
    noises = jnp.ones((max(len(recipe.grid), 1), 3, *recipe.latent_shape))
    sampler = dataclasses.replace(base, recipe=recipe).sampler
    return flops(sampler, base.params, noises, *text, *null)

  one = cost(base.recipe.as_student((1.0,)))
  assert one == flops(
    base.denoiser.predict_x0,
    base.params,
    jnp.ones((3, 2, 4, 4, 4)),
    jnp.ones(3),
    *text,
  )
  assert cost(base.recipe.as_student((1.0, 0.5))) == 2 * one
  assert cost(base.recipe.as_teacher(50, 3.0)) == 100 * one


def test_contenders_make_what_they_claim(base):
  made = sampling_speed.make_contenders(
    base, 2, (4, 8), (2, 3.0), [1], decoded=True
  )
  assert [(c.name, c.evaluations) for c in made] == [
    ("teacher, 2 steps", 4),
    ("student, 1 step", 1),
  ]
  frames = made[1].run()
  assert frames.dtype == np.uint8
  assert frames.shape == (2, 8, 32, 32, 3)


def test_ratios_are_of_medians_without_the_warm_up(monkeypatch):
  now = {"wall": 0.0, "cpu": 0.0}
  clocks = types.SimpleNamespace(
    perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"]
  )
  monkeypatch.setattr(sampling_speed, "time", clocks)

  def contender(name, *seconds):
    times = iter([100.0, *seconds])  # the first call compiles

    def run():
      took = next(times)
      now["wall"] += took
      now["cpu"] += 2 * took if name == "teacher" else took

    return sampling_speed.Contender(name, 1, run)

  teacher = contender("teacher", 8.0, 8.0, 6.0, 90.0)
  student = contender("student", 1.0, *[0.5, 1.5] * 4, *[2.0] * 16)
  rows = sampling_speed.compare([teacher, student], 3, 8.0)
  assert (teacher.calls, student.calls) == (1, 8)
  assert [row["wall"] for row in rows] == [8.0, 2.0]
  assert [row["wall_ratio"] for row in rows] == [1.0, 4.0]
  assert [row["cpu_ratio"] for row in rows] == [1.0, 8.0]


def test_both_ways_to_files_write_the_same(tmp_path):
  model, notes = Pipeline.load("embedded"), []
  for name, way in sampling_speed.ways_to_files(model, 2, 3, notes).items():
    (tmp_path / name).mkdir()
    way(tmp_path / name)
  one, other = (sorted(folder.iterdir()) for folder in tmp_path.iterdir())
  assert [file.name for file in one] == [file.name for file in other]
  assert len({file.read_bytes() for file in one}) == 6
  for mine, theirs in zip(one, other, strict=True):
    assert mine.read_bytes() == theirs.read_bytes()
  stages = sampling_speed.usual_stages(notes * 2)
  assert stages["wall"] == notes[0]["wall_seconds_per_video"]
  assert list(stages)[:4] == ["text", "denoising", "decoding", "writing"]


@pytest.mark.torch
@pytest.mark.parametrize(
  "model, tasks",
  [
    ("wan", ["forward", "gradients", "teacher", "student"]),
    ("cogvideox", ["forward", "attention", "attention_gradients", "teacher"]),
  ],
)
def test_both_sides_compute_the_same(model, tasks, monkeypatch):
  # CogVideoX's attention computes for longer than it compiles
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
  size = ["--layers=1", "--latent", "2", "4", "4", "16", "--turns=1"]
  line = [f"--model={model}", *size, "--tasks", *tasks]
  table = against_diffusers.main(against_diffusers.parse(line))
  assert list(table["tasks"]) == tasks
  for task, row in table["tasks"].items():
    assert row["ours"] > 0
    if task == "student":
      assert "diffusers" not in row
    else:
      assert row["diffusers"] > 0
      assert row["apart"] < 1e-4
  assert ("speed_up" in table) == ("student" in tasks)


@pytest.mark.torch
@pytest.mark.parametrize("model, base", [("wan", 4), ("cogvideox", 32)])
def test_both_sides_code_the_same(model, base):
  size = ["--layers=1", "--latent", "2", "4", "4", "16", "--turns=1"]
  codec = [f"--bases={base}", "--clip", "9", "16", "16"]
  tasks = list(against_diffusers.CODING)
  line = [f"--model={model}", *size, *codec, "--tasks", *tasks]
  table = against_diffusers.main(against_diffusers.parse(line))
  assert list(table["tasks"]) == [f"{task}, base {base}" for task in tasks]
  for row in table["tasks"].values():
    assert min(row["ours"], row["diffusers"]) > 0
    assert row["apart"] < 1e-4


def test_blocks_with_a_save_are_told_from_those_without():
  # blocks of 3 updates of 1 s, a save of 0.5 s as every second one begins
  times, now = [], 0.0
  blocks = run_overhead.Blocks(configs.CheckpointConfig(), 0)
  blocks.size = 3
  for step in range(1, 31):
    now += 100.0 if step == 1 else 1.0
    times.append(now)
    now += 0.5 if blocks.due(step) else 0.0
  assert run_overhead.medians(times, 3) == (3.0, 3.5)
  with pytest.raises(ValueError, match="too few"):
    run_overhead.medians(times[:8], 3)


def test_the_reward_is_slow_in_every_second_block(monkeypatch):
  blocks = labelling_cost.Blocks
  monkeypatch.setattr(blocks, "size", 3)
  monkeypatch.setattr(blocks, "times", [])
  slept = []
  for step in range(15):
    slept.append(labelling_cost.seconds_to_sleep())
    blocks.times.append(100.0 + 2 * step)
  # the first block compiles and the second tells how long an update takes
  assert slept == [0] * 9 + [2] * 3 + [0] * 3


def test_memory_of_decoding_does_not_grow_with_the_clip(monkeypatch):
  monkeypatch.setattr(decode_memory, "HEIGHT", 32)
  monkeypatch.setattr(decode_memory, "WIDTH", 32)
  config = dataclasses.replace(WanVAEConfig(), base_dim=8, num_res_blocks=1)
  short, long = (decode_memory.measure(config, n) for n in (9, 33))
  assert long["frames"] / short["frames"] == pytest.approx(33 / 9, rel=0.1)
  assert long["frames"] >= 3 * 33 * 32 * 32
  # the frames themselves are there as floating-point numbers, too
  grown = long["between"] - short["between"]
  assert grown < 13 * (long["frames"] - short["frames"])


def test_a_checkpoint_of_zeros_is_converted(monkeypatch, tmp_path, capfd):
  monkeypatch.setattr(convert_memory, "PUBLISHED", {"tiny": WAN})
  monkeypatch.setattr(convert_memory, "SHARD_BYTES", 4096)
  folder = tmp_path / "zeros"
  flags = types.SimpleNamespace(folder=folder, model="tiny")
  convert_memory.main(flags)
  printed = capfd.readouterr().out
  assert "source to orbax, verified" in printed
  assert "orbax to back, verified" in printed
  assert not list(folder.iterdir())


@pytest.mark.slow  # two teachers, two students, several samplers
@pytest.mark.torch
def test_teachers_of_torch_come_back_to_it(tmp_path):
  from benchmarks import torch_round_trip  # needs torch

  line = [f"--out={tmp_path / 'out'}", "--teacher_steps=2", "--steps=2"]
  tables = torch_round_trip.main(
    torch_round_trip.parse([*line, "--samples=80"])
  )
  for table in tables.values():
    assert table["largest difference of latents"] < 1e-3
  assert (tmp_path / "out" / "round_trip.png").stat().st_size > 1000


def test_ddpo_gets_more_calls_and_the_same_reward(tmp_path):
  runs = rewards_on_digits.settings(3, tmp_path)
  assert len(runs) == 2 * len(rewards_on_digits.REWARDS)
  for name, config in runs.items():
    assert config.seed == 3
    assert config.student == str(tmp_path / "student-3")
    if "-latent-" in name:
      other = runs[name.replace("-latent-", "-ddpo-")]
      assert other.reward == config.reward
      assert other.distill.climbing == ("ddpo_weight",)
      assert config.distill.climbing == ("reward_weight",)
      calls = map(rewards_on_digits.calls, (config, other))
      assert list(calls) == [512 + 6 * 128, 150 * 11]


def test_gains_are_those_of_pairs(tmp_path):
  runs = rewards_on_digits.settings(0, tmp_path)
  config = runs["temporal_flickering-latent-0"]
  rng = np.random.default_rng(0)
  before = dict.fromkeys(rewards_on_digits.WATCHED, 1.0)
  before["temporal_flickering"] = rng.normal(size=400)
  gain = 0.1 + 0.01 * rng.normal(size=400)
  after = before | {"temporal_flickering": before["temporal_flickering"] + gain}
  (tmp_path / "metrics.jsonl").write_text('{"step": 10, "lrm_spearman": 0.9}\n')
  row = rewards_on_digits.compare("x", config, before, after, tmp_path)
  assert row["gain"] == pytest.approx(0.1, abs=2e-3)
  assert row["standard_error"] == pytest.approx(0.01 / 20, rel=0.1)
  assert row["spearman"] == 0.9
  table = rewards_on_digits.table([row | {"seconds": 7.0}]).splitlines()
  assert len(table) == 3
  assert "| 1280 | 7 | +0.09" in table[2]
  assert "| 0.90 | 1.000 → 1.000 |" in table[2]


def test_bad_rewards_are_as_bad_as_they_say(tmp_path):
  rng = np.random.default_rng(0)
  clean = np.zeros((2, 3, 8, 8, 3), np.uint8)
  clean[:, :, 2:6, 2:6] = 200
  noisy = clean + rng.integers(0, 40, clean.shape).astype(np.uint8)
  prompts = ["a", "b"]
  assert (
    bad_rewards.noise_size(noisy, prompts)
    > bad_rewards.noise_size(clean, prompts) + 1
  ).all()
  assert bad_rewards.constant(noisy, prompts).tolist() == [1, 1]
  raised = 0
  for _ in range(300):
    try:
      bad_rewards.raises_in_30_percent(clean[:1], ["a"])
    except ConnectionError:
      raised += 1
  assert 60 < raised < 120
  for name in bad_rewards.RUNS:
    config = bad_rewards.settings(name, tmp_path)
    assert config.reward.name not in config.guard.watch
    assert config.guard.watch


def test_bias_falls_with_the_number_of_clips():
  features = np.random.default_rng(0).normal(size=(400, 8))
  few, many = frechet_bias.estimates(features, (20, 160), 6)
  assert (few["clips"], many["clips"]) == (20, 160)
  assert few["frechet"] > 3 * many["frechet"] > 0
  assert abs(few["frechet_extrapolated"]) < 0.5 * few["frechet"]
  assert few["frechet_deviation"] > many["frechet_deviation"]


def test_failures_are_told_by_what_leaves_the_healthy_for_good():
  healthy = [
    {"step": 20 * i, "frechet": 9.0 if i == 1 else 1.0, "diversity": 5.0}
    for i in range(1, 7)
  ]
  failing = [
    {"step": 20 * i, "frechet": value, "diversity": spread}
    for i, value, spread in (
      (1, 9.0, 5.0),  # as the healthy one at that step
      (2, 3.0, 5.0),  # away, but it comes back
      (3, 1.1, 5.5),
      (4, 1.3, 3.9),
      (5, 4.0, 3.0),
    )
  ]
  assert failures.departures(failing, healthy) == {
    "frechet": 80,
    "diversity": 80,
  }
  # one that goes on from the healthy run is measured by its end
  assert failures.departures(failing[:1], healthy, True) == {"frechet": 20}
  assert failures.departures(healthy, healthy) == {}


def test_failures_differ_from_the_healthy_run_as_they_say(tmp_path):
  healthy = dataclasses.asdict(failures.settings("healthy", tmp_path))
  for name, changes in failures.FAILURES.items():
    config = dataclasses.asdict(failures.settings(name, tmp_path))
    for part, entries in changes.items():
      for entry, value in entries.items():
        assert config[part][entry] == value != healthy[part][entry], name
  clips = np.zeros((1, 1, 2, 2, 3), np.uint8)
  clips[..., 0, 0, :] = 255
  assert failures.saturated(clips) == 0.25


def test_prepare_is_measured_with_and_without_its_start(monkeypatch, tmp_path):
  asked, clock = [], iter(range(0, 1000, 10))

  def prepare(videos, out, processes, flags):
    asked.append((processes, out))

  monkeypatch.setattr(prepare_speed, "prepare", prepare)
  monkeypatch.setattr(prepare_speed, "decode", lambda videos, tuned: 5)
  monkeypatch.setattr(prepare_speed.time, "perf_counter", lambda: next(clock))
  found = prepare_speed.measure(tmp_path, 1, [])
  assert [processes for processes, _ in asked] == [1, 1, 2, 2]
  assert asked[0] == asked[1] != asked[2] == asked[3]  # the set is there
  assert found["plain"] == found["1 whole"] == found["2 whole"] == 10
  assert found["1 work"] == found["2 work"] == 0
  found |= {"tuned": 5.0, "1 work": 20.0, "2 work": 8.0}
  lines = prepare_speed.table(found, 40).splitlines()
  assert lines[1].split()[-4:] == ["10.0", "4.00", "1.00", "0.50"]
  assert lines[3].split()[-4:] == ["20.0", "2.00", "0.50", "0.25"]
  assert lines[5].split()[-4:] == ["8.0", "5.00", "1.25", "0.62"]


def test_the_floor_of_prepare_decodes_every_frame(tmp_path):
  for name, frames in (("a", 5), ("b", 7)):
    clip = np.zeros((frames, 16, 16, 3), np.uint8)
    videos.write_video(tmp_path / f"{name}.mp4", clip, 8)
  rows = [f'{{"file_name": "{n}.mp4", "text": "x"}}\n' for n in "ab"]
  (tmp_path / "metadata.jsonl").write_text("".join(rows))
  for tuned in (False, True):
    assert prepare_speed.decode(tmp_path, tuned) == 12
