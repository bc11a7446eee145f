"""`dollar sample`: determinism, choice of sampler, files, bad input."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import moving_digits, videos
from dollar_jax.diffusion.timesteps import student_grid, teacher_grid
from dollar_jax.interop.pipeline import Pipeline, Recipe
from dollar_jax.models.denoiser import make_wan
from dollar_jax.models.linear_vae import LinearVAE
from dollar_jax.models.wan import WanConfig
from dollar_jax.programs import _sample as sample
from dollar_jax.train import datasets

SHAPE = (2, 4, 4, 8)
PROMPTS = ["a 3 moving left", "a 7 moving up", "a 0 moving down"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A folder of tiny untrained models: teacher, student, bare (no text)."""
  folder = tmp_path_factory.mktemp("models")
  clips = moving_digits.make_clips("train", 40)
  encoder = datasets.digits_text_encoder()
  config = WanConfig(
    patch_size=(1, 1, 1),
    num_attention_heads=1,
    attention_head_dim=12,
    in_channels=8,
    out_channels=8,
    text_dim=encoder.dim,
    freq_dim=16,
    ffn_dim=32,
    num_layers=1,
    scan=False,
  )
  denoiser = make_wan(config)
  params = jax.jit(denoiser.init, static_argnums=(1, 2))(
    jax.random.key(0), SHAPE, (4, encoder.dim)
  )
  # a fresh network answers 0 whatever it is asked; this one has opinions
  params["proj_out"]["kernel"] += 0.1
  params["scale_shift_table"] += 0.5
  teacher = Pipeline(
    denoiser,
    params,
    LinearVAE.fit(clips.frames, channels=8),
    encoder,
    Recipe(SHAPE, 8.0, 5, 2.0),
  )
  teacher.save(folder / "teacher")
  student = teacher.with_params(params, teacher.recipe.as_student((1.0, 0.5)))
  student.save(folder / "student")
  bare = dataclasses.replace(student, text_encoder=None, codec=None)
  bare.save(folder / "bare")
  return folder


@pytest.fixture
def run(models, tmp_path, capsys):
  """Samples; returns exit code, stderr and latents by file name."""

  def call(prompts, *args, model="student", out="out"):
    if isinstance(prompts, list):
      (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
      prompts = tmp_path / "prompts.txt"
    line = [f"--model={models / model}", f"--prompts={prompts}"]
    line += [f"--out={tmp_path / out}", "--save_latents", *map(str, args)]
    code = cli.main(["sample", *line])
    err = capsys.readouterr().err
    files = sorted((tmp_path / out).glob("*.npy"))
    return code, err, {file.stem: np.load(file) for file in files}

  return call


@pytest.fixture
def refusal(run):
  """Samples with what must fail; returns the one sentence."""

  def call(*args, **kwargs):
    code, err, _ = run(*args, **kwargs)
    assert code != 0
    start = "dollar sample: error: "
    assert err.startswith(start), err
    assert err.count("\n") == 1, err
    return err[len(start) : -1]

  return call


def test_a_video_depends_on_its_prompt_index_and_seed_only(run):
  code, err, all_at_once = run(PROMPTS, "--samples_per_prompt=2", "--seed=3")
  assert (code, err) == (0, "")
  assert list(all_at_once) == [
    f"{p}-{i}" for p in sorted(PROMPTS) for i in (0, 1)
  ]
  distances = [
    np.abs(a - b).max()
    for a, b in itertools.combinations(all_at_once.values(), 2)
  ]
  assert min(distances) > 0.1, "two videos are the same"

  flags = ["--samples_per_prompt=2", "--batch_size=1"]
  first = run(PROMPTS[1:2], *flags, "--seed=3", out="first")[2]
  again = run(PROMPTS[1:], *flags, "--seed=3", out="again")[2]
  other = run(PROMPTS[1:2], *flags, "--seed=4", out="other")[2]
  assert len(first) == len(other) == 2
  for name, latents in first.items():
    assert latents.shape == SHAPE
    np.testing.assert_array_equal(latents, again[name])
    # another batch size adds the products up in another order
    np.testing.assert_allclose(latents, all_at_once[name], atol=1e-5)
    assert np.abs(latents - other[name]).max() > 0.1


def test_steps_and_guidance_choose_the_sampler(models):
  model = Pipeline.load(models / "student")
  teacher = Pipeline.load(models / "teacher")

  def recipe(model, steps, guidance):
    return sample.choose_sampler(model, steps, guidance).recipe

  assert recipe(model, None, None) == model.recipe
  assert recipe(model, 2, None) == model.recipe
  assert recipe(model, 4, None).grid == tuple(map(float, student_grid(4)))
  chosen = recipe(model, 7, 3.0)
  assert (chosen.grid, chosen.steps, chosen.guidance) == ((), 7, 3.0)
  assert chosen.network_evaluations == 14
  assert recipe(teacher, None, None) == teacher.recipe
  chosen = recipe(teacher, 9, None)
  assert (chosen.grid, chosen.steps, chosen.guidance) == ((), 9, 2.0)
  chosen = recipe(teacher, None, 1.0)
  assert (chosen.steps, chosen.network_evaluations) == (5, 5)


def test_guidance_leads_away_from_the_negative_prompt(models):
  teacher = Pipeline.load(models / "teacher")
  away = sample.choose_sampler(teacher, None, None, "a 7 moving up")
  text, mask = teacher.encode(["a 7 moving up"])
  np.testing.assert_array_equal(away.null_prompt["null_text"], text[0])
  np.testing.assert_array_equal(away.null_prompt["null_mask"], mask[0])
  assert not teacher.null_prompt["null_mask"].any()
  text, mask = teacher.encode(PROMPTS[:1])
  noises = teacher.draw_noise(["one"], 0)
  one, other = (m.sample_latents(text, mask, noises) for m in (teacher, away))
  assert np.abs(one - other).max() > 0.01
  student = Pipeline.load(models / "student")
  with pytest.raises(ValueError, match="does nothing without guidance"):
    sample.choose_sampler(student, None, None, "a 7 moving up")


def test_a_negative_prompt_that_nobody_reads_is_refused(refusal):
  message = refusal(
    PROMPTS[0], "--negative_prompt=a 7", "--text_embeddings=file.npz"
  )
  assert message.endswith("into file.npz as null_text and null_mask")


def test_videos_can_have_another_size(models, run):
  code, err, latents = run(PROMPTS[0], "--video_size=12x24x48")
  assert (code, err) == (0, "")
  assert [x.shape for x in latents.values()] == [(3, 3, 6, 8)]


@pytest.mark.parametrize(
  ("model", "size", "sentence"),
  [
    ("student", "12x24", "--video_size=12x24 is no size; give frames"),
    ("student", "12x24x49", "does not divide"),
    ("bare", "12x24x48", "copy vae/ into the folder"),
  ],
)
def test_sizes_that_cannot_be_are_refused(models, model, size, sentence):
  model = Pipeline.load(models / model)
  with pytest.raises(ValueError, match=sentence):
    sample.choose_size(model, size)


def test_teacher_sampler_follows_the_guided_ode(models, run, tmp_path):
  noise = np.random.default_rng(0).normal(size=(1, *SHAPE))
  np.save(tmp_path / "noise.npy", noise)
  flags = [
    "--steps=3",
    "--guidance=2.5",
    f"--initial_latents={tmp_path}/noise.npy",
  ]
  code, err, latents = run(PROMPTS[0], *flags)
  assert (code, err) == (0, "")

  model = Pipeline.load(models / "student")
  text, mask = model.encode(PROMPTS[:1])
  null, no_mask = model.encode([""])
  x_t = noise.astype(np.float32)
  grid = teacher_grid(3, model.denoiser.shift)
  predict = jax.jit(model.denoiser.predict_x0)
  for t, s in itertools.pairwise(grid):
    at = np.array([t])
    with_text = predict(model.params, x_t, at, text, mask)
    without = predict(model.params, x_t, at, null, no_mask)
    x0 = without + 2.5 * (with_text - without)
    eps = (x_t - (1 - t) * x0) / t
    x_t = (1 - s) * x0 + s * eps
  np.testing.assert_allclose(latents[f"{PROMPTS[0]}-0"], x_t[0], atol=1e-4)


def test_student_starts_from_the_noise_given(run, tmp_path):
  own = run(PROMPTS[0])[2]
  np.save(tmp_path / "noise.npy", np.ones((1, *SHAPE), np.float32))
  flag = f"--initial_latents={tmp_path / 'noise.npy'}"
  given = run(PROMPTS[0], flag, "--steps=1", out="given")[2]
  other_seed = run(PROMPTS[0], flag, "--steps=1", "--seed=9", out="other")[2]
  name = f"{PROMPTS[0]}-0"
  np.testing.assert_array_equal(given[name], other_seed[name])
  assert np.abs(own[name] - given[name]).max() > 0.1


def test_a_folder_says_how_its_clips_were_made(run, tmp_path):
  assert run(PROMPTS, "--batch_size=1", model="teacher")[0] == 0
  made = json.loads((tmp_path / "out" / "machine.json").read_text())
  assert (made["steps"], made["guidance"]) == (5, 2.0)
  assert (made["network_evaluations"], made["batch_size"]) == (10, 1)
  assert 0 < made["seconds_per_video"] < 60
  stages = made["stage_seconds_per_video"]
  assert set(stages) == {"text", "denoising", "decoding", "writing"}
  # a sum of medians is not the median of sums
  device = stages["denoising"] + stages["decoding"]
  assert made["seconds_per_video"] == pytest.approx(device, rel=0.5)
  assert 0 < made["wall_seconds_per_video"] < 60
  assert 0 <= made["overlap"] < 1
  assert made["compile_seconds"] > 0


def test_a_slow_encoder_is_asked_batch_by_batch(models):
  """One whose words are few says before anything is sampled what it lacks."""
  model = Pipeline.load(models / "student")
  with pytest.raises(ValueError, match="word 'lft'"):
    sample._embedder(model, [*PROMPTS, "a 3 moving lft"], None)
  asked = []

  class Slow:
    dim, max_length = model.text_encoder.dim, model.text_encoder.max_length

    def encode(self, prompts):
      asked.append(prompts)
      return model.encode(prompts)

  slow = dataclasses.replace(model, text_encoder=Slow())
  embed, shape, null = sample._embedder(slow, PROMPTS, None)
  assert (asked, null) == ([], None)
  text, _ = embed([1, 1])
  assert asked == [[PROMPTS[1]] * 2]
  assert text.shape == (2, *shape)


def test_files_are_named_indexed_and_kept(run, tmp_path, models):
  assert run(PROMPTS[:2])[0] == 0
  out = tmp_path / "out"
  names = [f"{p}-0" for p in PROMPTS[:2]]
  files = {f"{n}{end}" for n in names for end in (".mp4", ".npy")}
  assert {p.name for p in out.iterdir()} == files | {"metadata.jsonl"}
  rows = map(json.loads, (out / "metadata.jsonl").read_text().splitlines())
  assert list(rows) == [
    {"file_name": f"{p}-0.mp4", "text": p} for p in PROMPTS[:2]
  ]
  frames, fps = videos.read_video(out / f"{names[0]}.mp4")
  assert (frames.shape, fps) == ((8, 32, 32, 3), 8.0)
  codec = Pipeline.load(models / "student").codec
  decoded = codec.decode(np.load(out / f"{names[0]}.npy")[None])[0]
  # H.264 is lossy; colours of another video would be far off
  assert np.abs(frames.astype(int) - np.asarray(decoded)).mean() < 4

  # what is there stays, what is missing is made
  kept, gone = sorted(out.glob("*.mp4")), out / f"{names[1]}.npy"
  for file in kept:
    file.write_bytes(b"kept")
  latents = np.load(gone)
  gone.unlink()
  assert run(PROMPTS[:2])[0] == 0
  assert [file.read_bytes() for file in kept] == [b"kept", b"kept"]
  np.testing.assert_allclose(np.load(gone), latents, atol=1e-5)
  assert {p.name for p in out.iterdir()} == files | {"metadata.jsonl"}


def test_a_suite_says_how_many_videos_of_each_prompt(run, models, tmp_path):
  rows = [
    {"prompt_en": PROMPTS[0], "dimension": ["color", "scene"]},
    {"prompt_en": PROMPTS[0], "dimension": ["scene"]},  # VBench has two such
    {"prompt_en": PROMPTS[1], "dimension": ["temporal_flickering"]},
  ]
  suite = tmp_path / "suite.json"
  suite.write_text(json.dumps(rows))
  made = tmp_path / "suite"
  args = [f"--model={models / 'student'}", f"--suite={suite}", f"--out={made}"]
  assert cli.main(["sample", *args, "--steps=1"]) == 0
  assert {file.name for file in made.glob("*.mp4")} == {
    f"{prompt}-{i}.mp4"
    for prompt, count in ((PROMPTS[0], 5), (PROMPTS[1], 25))
    for i in range(count)
  }
  # the clips are those that the prompts alone give
  flags = ["--steps=1", "--samples_per_prompt=2"]
  assert run(PROMPTS[:1], *flags)[0] == 0
  name = f"{PROMPTS[0]}-1.mp4"
  np.testing.assert_array_equal(
    videos.read_video(made / name)[0],
    videos.read_video(tmp_path / "out" / name)[0],
  )
  few = [*args[:2], f"--out={tmp_path / 'few'}", *flags]
  assert cli.main(["sample", *few]) == 0
  assert len(list((tmp_path / "few").glob("*.mp4"))) == 4


def test_a_suite_beside_prompts_is_refused(refusal, tmp_path):
  suite = tmp_path / "suite.txt"
  suite.write_text("a 3 moving left\n")
  assert "exclude each other" in refusal(PROMPTS[0], f"--suite={suite}")


def test_model_without_encoder_and_codec_takes_embeddings(
  models, run, tmp_path
):
  text, mask = Pipeline.load(models / "student").encode(PROMPTS)
  np.savez(tmp_path / "text.npz", text=text, text_mask=mask)
  flag = f"--text_embeddings={tmp_path / 'text.npz'}"
  code, err, latents = run(PROMPTS, flag, model="bare", out="bare")
  assert (code, err) == (0, "")
  whole = run(PROMPTS)[2]
  assert list(latents) == list(whole)
  for name, x0 in latents.items():
    np.testing.assert_allclose(x0, whole[name], atol=1e-5)
  assert not list((tmp_path / "bare").glob("*.mp4"))
  again = run(PROMPTS, flag, model="bare", out="bare")
  assert again[0] == 0


@pytest.mark.parametrize(
  ("prompts", "flags", "sentence"),
  [
    ("", [], "prompt 1 of 1 is empty; write what the video should show"),
    ("  ", [], "prompt 1 of 1 is empty"),
    ([PROMPTS[0], "", PROMPTS[1]], [], "prompt 2 of 3 is empty"),
    ([], [], "no prompt given; use --prompts=TEXT or --prompts=FILE"),
    ("a 3 moving lft", [], "word 'lft' in prompt 'a 3 moving lft' is not in"),
    ("a a a a a", [], "prompt 'a a a a a' has 5 words; this model reads at"),
    ([PROMPTS[0], PROMPTS[0]], [], "2 videos would be called 'a 3 moving left"),
    (PROMPTS[0], ["--steps=0"], "sampling steps is 0; it must be at least 1"),
    (PROMPTS[0], ["--steps=0", "--guidance=2"], "sampling steps is 0"),
    (PROMPTS[0], ["--samples_per_prompt=0"], "--samples_per_prompt=0"),
    (PROMPTS[0], ["--batch_size=0"], "--batch_size=0"),
    (PROMPTS[0], ["--seed=-1"], "--seed=-1"),
    (PROMPTS[0], ["--model=/nowhere"], "/nowhere is not a folder; give a"),
    (PROMPTS[0], ["--out=/dev/null/x"], "/dev/null/x: Not a directory"),
    (
      PROMPTS[0],
      ["--initial_latents=/nowhere"],
      "/nowhere is no readable .npy",
    ),
    (
      PROMPTS[0],
      ["--text_embeddings=/nowhere"],
      "/nowhere is no readable .npz",
    ),
  ],
)
def test_bad_input_is_one_sentence(refusal, prompts, flags, sentence):
  assert sentence in refusal(prompts, *flags)


def test_prompts_that_are_no_text(refusal, tmp_path):
  (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
  path = str(tmp_path / "image.png")
  assert refusal(path) == f"{path} is no UTF-8 text; convert it"


def test_noise_that_does_not_fit(refusal, tmp_path):
  file = tmp_path / "noise.npy"
  np.save(file, np.zeros((1, 2, 4, 4, 7)))
  flag = f"--initial_latents={file}"
  assert refusal(PROMPTS[0], flag) == (
    f"{file} has shape (1, 2, 4, 4, 7); 1 videos of this model need "
    "(1, 2, 4, 4, 8)"
  )
  for content in (b"", b"no array", b"PK\x03\x04 torn"):
    file.write_bytes(content)
    assert f"{file} is no readable .npy file" in refusal(PROMPTS[0], flag)


def test_embeddings_that_do_not_fit(refusal, tmp_path):
  file = tmp_path / "text.npz"
  flag = f"--text_embeddings={file}"
  sentence = refusal(PROMPTS[0], model="bare")
  assert sentence.startswith("this model has no text encoder; give the prompts")
  good = {"text": np.zeros((1, 4, 64)), "text_mask": np.ones((1, 4), bool)}
  for wrong in (
    {"texts": good["text"]},
    {"text": np.zeros((2, 4, 64))},
    {"text": np.zeros((1, 4, 65))},
    {"text": np.zeros((4, 64))},
    good | {"text_mask": np.ones((1, 5), bool)},
    good | {"null_text": np.zeros((1, 4, 64))},
  ):
    np.savez(file, **wrong)
    sentence = refusal(PROMPTS[0], flag, model="bare")
    assert "1 prompts for this model need text [1, S, 64]" in sentence
  np.savez(file, **good)
  sentence = refusal(PROMPTS[0], flag, "--guidance=3", model="bare")
  assert "no array null_text" in sentence
  for content in (b"", b"no array", b"PK\x03\x04 torn"):
    file.write_bytes(content)
    sentence = refusal(PROMPTS[0], flag, model="bare")
    assert f"{file} is no readable .npz file" in sentence


def test_damaged_model_is_one_sentence(models, refusal, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(models / "student", broken)
  [weights] = pathlib.Path(broken, "transformer").glob("*.safetensors")
  weights.write_bytes(weights.read_bytes()[:1000])
  flag = f"--model={broken}"
  assert str(broken / "transformer") in refusal(PROMPTS[0], flag)
