"""Batches of a pipeline: what one by one gives, one batch ahead."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from dollar_jax.interop import pipeline
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.interop.text_encoders import WordEncoder
from dollar_jax.models.linear_vae import LinearVAE
from tests.tiny import WAN, random_params, wan

SHAPE = (2, 4, 4, WAN.in_channels)
PROMPTS = ["a cat", "a dog", "the cat", "the dog", "a red dog"]


@pytest.fixture(scope="module")
def model():
  """A two-step student, untrained, that listens to its prompt."""
  rng = np.random.default_rng(0)
  patch = (2, 4, 4)
  pixels = 3 * int(np.prod(patch))
  codec = LinearVAE(
    rng.normal(0, 0.2, (pixels, SHAPE[-1])).astype(np.float32),
    rng.normal(0, 0.2, pixels).astype(np.float32),
    np.ones(SHAPE[-1], np.float32),
    patch,
  )
  words = {word for prompt in PROMPTS for word in prompt.split()}
  encoder = WordEncoder.create(words, WAN.text_dim, 5)
  denoiser = wan()
  params = random_params(denoiser, scale=0.3)
  recipe = Recipe(SHAPE, 8.0).as_student((1.0, 0.5))
  return Pipeline(denoiser, params, codec, encoder, recipe)


def embed(model, asked=None):
  """Embeds `PROMPTS` by index; appends to `asked` what it was asked for."""

  def call(rows):
    if asked is not None:
      asked.append(list(rows))
    return model.encode([PROMPTS[row] for row in rows])

  return call


def one_by_one(model, size, initial=None):
  """Latents and frames of `PROMPTS`, a batch done before the next begins."""
  latents, frames = [], []
  for start in range(0, len(PROMPTS), size):
    rows = [min(start + i, len(PROMPTS) - 1) for i in range(size)]
    noises = model.draw_noise([PROMPTS[i] for i in rows], 3)
    if initial is not None:
      noises = noises.at[0].set(initial[np.array(rows)])
    text, mask = model.encode([PROMPTS[i] for i in rows])
    x0 = model.sample_latents(text, mask, noises)
    latents.append(np.asarray(x0))
    frames.append(np.asarray(jax.jit(LinearVAE.decode)(model.codec, x0)))
  count = len(PROMPTS)
  return np.concatenate(latents)[:count], np.concatenate(frames)[:count]


@pytest.mark.parametrize("given", [False, True])
def test_batches_are_bit_for_bit_what_one_by_one_gives(model, given):
  initial = np.random.default_rng(1).normal(size=(len(PROMPTS), *SHAPE))
  initial = initial.astype(np.float32) if given else None
  latents, frames = one_by_one(model, 2, initial)
  assert np.abs(latents[0] - latents[1]).max() > 0.1
  found = list(
    model.batches(
      PROMPTS, embed(model), model.text_shape, 2, 3, initial=initial
    )
  )
  assert [batch.rows for batch in found] == [range(2), range(2, 4), range(4, 5)]
  for batch in found:
    rows = slice(batch.rows.start, batch.rows.stop)
    np.testing.assert_array_equal(batch.x0, latents[rows])
    np.testing.assert_array_equal(batch.frames, frames[rows])


def test_generate_and_undecoded_batches_are_the_same_videos(model):
  latents, frames = one_by_one(model, 2)
  named = dict(zip(PROMPTS, range(len(PROMPTS)), strict=True))
  clips = model.generate(PROMPTS, seed=3, batch_size=2)
  assert clips.shape == frames.shape
  batches = model.batches(
    PROMPTS, embed(model), model.text_shape, 2, 3, decode=False
  )
  for batch in batches:
    assert batch.frames is None
    np.testing.assert_array_equal(batch.x0, latents[list(batch.rows)])
  # `generate` names a video by its prompt and a number
  indexed = [f"{prompt}-0" for prompt in named]
  whole = model.batches(indexed, embed(model), model.text_shape, 2, 3)
  np.testing.assert_array_equal(
    clips, np.concatenate([batch.frames for batch in whole])
  )


def test_one_batch_is_begun_ahead_and_no_more(model):
  asked = []
  batches = model.batches(PROMPTS, embed(model, asked), model.text_shape, 1)
  for handed_out, batch in enumerate(batches):
    assert list(batch.rows) == [handed_out]
    ahead = [[row] for row in range(min(handed_out + 2, len(PROMPTS)))]
    assert asked == ahead


def test_the_last_batch_repeats_its_last_video(model):
  asked = []
  found = list(model.batches(PROMPTS, embed(model, asked), (5, 10), 3))
  assert asked == [[0, 1, 2], [3, 4, 4]]
  assert [len(batch.x0) for batch in found] == [3, 2]
  assert [len(batch.frames) for batch in found] == [3, 2]


def test_stages_of_the_device_do_not_overlap(model):
  start = time.perf_counter()
  found = list(model.batches(PROMPTS, embed(model), model.text_shape, 1))
  wall = time.perf_counter() - start
  stages = [batch.seconds for batch in found]
  assert ["compiling" in seconds for seconds in stages] == [True] + [False] * 4
  assert all(seconds["text"] > 0 for seconds in stages)
  assert all(seconds["denoising"] > 0 for seconds in stages)
  device = [s["denoising"] + s["decoding"] for s in stages]
  assert sum(device) + stages[0]["compiling"] < wall


def test_what_a_slow_caller_does_is_no_stage(model):
  batches = model.batches(PROMPTS[:3], embed(model), model.text_shape, 1)
  stages = []
  for batch in batches:
    stages.append(batch.seconds)
    time.sleep(0.5)
  assert max(s["denoising"] + s["decoding"] for s in stages[1:]) < 0.5


def test_programs_are_traced_and_compiled_once(model, monkeypatch):
  traced, compiled = [], []
  fresh = dataclasses.replace(model)
  guided = pipeline.guided
  monkeypatch.setattr(
    pipeline, "guided", lambda *args: traced.append(1) or guided(*args)
  )
  fresh.generate(PROMPTS, batch_size=4)
  assert traced == [1]

  def listen(event, *_, **__):
    if event.endswith("backend_compile_duration"):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    fresh.generate(PROMPTS, seed=1, batch_size=4)
    assert (traced, compiled) == ([1], [])
    # what was compiled ahead is what the jitted function runs
    other = dataclasses.replace(model)
    names = [f"{prompt}-0" for prompt in PROMPTS]
    list(other.batches(names, embed(other), other.text_shape, 4))
    assert (traced, compiled) == ([1, 1], compiled[:1])
    assert len(compiled) == 1
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_no_video_compiles_nothing(model):
  fresh = dataclasses.replace(model)
  assert list(fresh.batches([], embed(fresh), fresh.text_shape, 1)) == []
  assert "sampler" not in vars(fresh)


def test_a_prompt_that_cannot_be_embedded_ends_it(model):
  def refused(rows):
    if rows != [0]:
      raise ValueError("no such word")
    return model.encode(PROMPTS[:1])

  batches = model.batches(PROMPTS, refused, model.text_shape, 1)
  with pytest.raises(ValueError, match="no such word"):
    list(batches)


def test_a_fault_of_the_device_comes_with_its_batch(model, monkeypatch):
  class Lost:
    def block_until_ready(self):
      raise RuntimeError("out of memory")

  draws = iter([model.sample_latents] + [lambda *_: Lost()] * 2)
  monkeypatch.setattr(
    Pipeline, "sample_latents", lambda self, *args: next(draws)(*args)
  )
  batches = model.batches(
    PROMPTS[:3], embed(model), model.text_shape, 1, decode=False
  )
  assert next(batches).rows == range(1)
  with pytest.raises(RuntimeError, match="out of memory"):
    next(batches)
