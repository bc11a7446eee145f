"""`dollar prepare`: folders of every kind of file become sets to train on."""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import latents
from dollar_jax.data.clips import ClipForm, cut_clips
from dollar_jax.interop import parts
from dollar_jax.interop.pipeline import Pipeline
from dollar_jax.models import wan_vae
from dollar_jax.models.video_vae import VideoVAE
from dollar_jax.models.wan_vae import WanVAEConfig
from dollar_jax.programs._prepare_clips import ClipMaker
from tests import odd_videos as odd

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINEAR = (
  *("--codec=linear", "--fit", "--channels=16", "--fit_clips=4"),
  *("--video_size=8x32x48", "--fps=8", "--shard_size=3"),
)
DIGITS = "a 3 moving left", "a 7 moving up", "a 1 moving down"


def write_list(folder, rows):
  lines = [json.dumps({"file_name": n, "text": text}) for n, text in rows]
  (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_plain(folder, count, captions=None, height=48):
  """Videos that differ, of 16 frames each."""
  folder.mkdir()
  rows = []
  for i in range(count):
    video = odd.moving_square(16, height)
    video[..., i % 3] //= 1 + i // 3
    video[:, -8:, : 8 + i] = 255
    odd.write(folder / f"{i}.mp4", video)
    rows.append((f"{i}.mp4", captions[i] if captions else f"square number {i}"))
  write_list(folder, rows)
  return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A folder of seven good videos."""
  return write_plain(tmp_path_factory.mktemp("videos") / "plain", 7)


@pytest.fixture
def prepare(capsys):
  """Runs the command; returns its stdout, or its one sentence of refusal."""

  def run(*flags, fails=False):
    code = cli.main(["prepare", *map(str, flags)])
    out, err = capsys.readouterr()
    assert (code != 0) == fails, err
    if not fails:
      return out
    start = "dollar prepare: error: "
    assert err.startswith(start), err
    assert err.count("\n") == 1, err
    return err[len(start) : -1]

  return run


def rows_of(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_a_folder_with_every_kind_of_file(prepare, tmp_path):
  folder = write_plain(tmp_path / "videos", 4)
  rows = rows_of(folder / "metadata.jsonl")
  whole = folder / "0.mp4"
  odd.turned(folder / "turned.mp4", whole)
  odd.write(folder / "deep.mkv", odd.moving_square(9), pix_fmt="yuv420p10le")
  odd.write(
    folder / "uneven.mkv", odd.moving_square(9), [i * i / 40 for i in range(9)]
  )
  odd.write(folder / "portrait.mp4", odd.moving_square(8, 96, 64))
  (folder / "same.mp4").write_bytes(whole.read_bytes())
  (folder / "empty.mp4").touch()
  (folder / "wrong.mp4").write_text("no video")
  odd.cut_short(folder / "half.mp4", whole, 0.5)
  odd.write_sound(folder / "sound.mp4")
  odd.write(folder / "one.mp4", odd.moving_square(1))
  odd.write(folder / "unlisted.mp4", odd.moving_square(10))
  names = (
    *("turned.mp4", "deep.mkv", "uneven.mkv", "portrait.mp4", "same.mp4"),
    *("gone.mp4", "empty.mp4", "wrong.mp4", "half.mp4", "sound.mp4"),
    "one.mp4",
  )
  rows = [(row["file_name"], row["text"]) for row in rows]
  write_list(folder, rows + [(name, f"the {name}") for name in names])
  out = tmp_path / "set"
  said = prepare(f"--videos={folder}", f"--out={out}", *LINEAR)
  taken = ["0.mp4", "1.mp4", "2.mp4", "3.mp4", *names[:4]]
  clips = {r["file_name"]: r["clips"] for r in rows_of(out / "sources.jsonl")}
  wanted = dict.fromkeys(taken, 1) | {f"{i}.mp4": 2 for i in range(4)}
  wanted["turned.mp4"] = 2
  assert {name: n for name, n in clips.items() if n} == wanted
  skipped = rows_of(out / "skipped.jsonl")
  reasons = {
    "same.mp4": "it has the same content as 0.mp4",
    "gone.mp4": "there is no such file",
    "empty.mp4": "the file is empty",
    "wrong.mp4": "it cannot be read as a video",
    "half.mp4": "it cannot be read as a video",
    "sound.mp4": "it has no video stream (audio only)",
    "one.mp4": "it holds one frame only",
    "unlisted.mp4": "no list gives its caption",
  }
  assert [row["file_name"] for row in skipped] == list(reasons)
  for row in skipped:
    assert row["reason"].startswith(reasons[row["file_name"]])
    assert row["clips"] == 0
  source = latents.read(out)
  assert len(source) == sum(wanted.values()) == 13
  assert "13 examples of 16 videos" in said
  assert said.endswith("; 8 skipped\n")

  sentence = prepare(
    *(f"--videos={folder}", f"--out={out}", *LINEAR, "--max_skipped=0.4"),
    fails=True,
  )
  assert sentence.startswith("8 of 16 were skipped, more than the share --max")


def test_the_linear_codec_gives_back_what_it_encoded(prepare, plain, tmp_path):
  out = tmp_path / "set"
  said = prepare(f"--videos={plain}", f"--out={out}", *LINEAR)
  codec, encoder = parts.load_parts(out)
  made = json.loads((out / "metadata.json").read_text())
  assert made["codec"] == parts.identity(codec)
  assert made["text_encoder"] == parts.identity(encoder)
  assert (made["video_size"], made["fps"]) == ([8, 32, 48], 8.0)
  assert encoder.words == tuple(sorted({*"0123456", "square", "number"}))

  source, form = latents.read(out), ClipForm(8, 32, 48, 8)
  clips, prompts = [], []
  for i in range(7):
    found = list(cut_clips(plain / f"{i}.mp4", form))
    clips += found
    prompts += [f"square number {i}"] * len(found)
  assert [row["prompt"].decode() for row in source] == prompts
  stored = np.stack([row["latents"] for row in source])
  encoded = np.asarray(codec.encode(np.stack(clips)))
  np.testing.assert_allclose(stored, encoded, rtol=0, atol=2e-5)
  text, mask = encoder.encode(prompts)
  np.testing.assert_array_equal([row["text"] for row in source], text)
  np.testing.assert_array_equal([row["text_mask"] for row in source], mask)
  back = np.asarray(codec.decode_signal(stored), np.float64)
  error = (back + 1) * 127.5 - np.stack(clips)  # nothing is clipped
  psnr = 10 * np.log10(255**2 / np.mean(error**2))
  assert psnr > 25
  assert made["psnr"] == pytest.approx(psnr, abs=0.01)
  assert f"PSNR is {psnr:.2f} dB" in said


def test_a_run_that_was_stopped_goes_on(prepare, plain, tmp_path, monkeypatch):
  whole, out = tmp_path / "whole", tmp_path / "set"
  prepare(f"--videos={plain}", f"--out={whole}", *LINEAR)
  examples, made = ClipMaker.examples, []

  def stops(self, rows, notes, done):
    made.append(rows)
    for number, example in enumerate(examples(self, rows, notes, done)):
      if rows.start == 3 and number == 3 and len(made) == 2:
        raise OSError(28, "No space left on device")
      yield example

  monkeypatch.setattr(ClipMaker, "examples", stops)
  command = f"--videos={plain}", f"--out={out}", *LINEAR
  assert prepare(*command, fails=True) == "No space left on device"
  assert not (out / "dataset_info.json").exists()
  prepare(*command)
  shards = [range(3), range(3, 6), range(6, 7)]
  assert made == [*shards[:2], *shards[1:]]  # the first was kept
  assert contents(out) == contents(whole)
  prepare(*command)  # nothing is left to do
  assert len(made) == 4
  assert contents(out) == contents(whole)

  extra = tmp_path / "extra"
  shutil.copytree(plain, extra)
  (extra / "other.mp4").touch()
  odd.write(extra / "0.mp4", odd.moving_square(9))
  sentence = prepare(f"--videos={extra}", *command[1:], fails=True)
  assert sentence.startswith(f"{out} holds a set of other sources (")
  for flag, name in (
    ("--fps=4", "fps (8.0, and now 4.0)"),
    ("--channels=8", "fit "),
    ("--dtype=float16", 'dtype ("float32", and now "float16")'),
  ):
    sentence = prepare(*command, flag, fails=True)
    assert sentence.startswith(f"{out} holds a set of other {name}"), sentence
  assert contents(out) == contents(whole)


def test_a_models_codec_and_text_encoder(prepare, tmp_path):
  captions = *DIGITS, "a cat moving up"
  folder = write_plain(tmp_path / "videos", 4, captions)
  out = tmp_path / "set"
  prepare(f"--videos={folder}", f"--out={out}", "--model=embedded")
  model = Pipeline.load("embedded")
  source = latents.read(out)
  assert source[0]["latents"].shape == model.recipe.latent_shape
  clips = [
    clip
    for i in range(3)
    for clip in cut_clips(folder / f"{i}.mp4", ClipForm(8, 32, 32, 8))
  ]
  encoded = np.asarray(model.codec.encode(np.stack(clips)))
  stored = np.stack([row["latents"] for row in source])
  np.testing.assert_allclose(stored, encoded, rtol=0, atol=2e-5)
  [row] = rows_of(out / "skipped.jsonl")
  assert row["file_name"] == "3.mp4"
  assert row["reason"].startswith("word 'cat' in prompt 'a cat moving up' is")
  made = json.loads((out / "metadata.json").read_text())
  assert made["codec"] == parts.identity(model.codec)
  assert made["codec_scale"]["deviation"] == pytest.approx(
    model.codec.scale.tolist()
  )
  assert parts.load_parts(out) is None


def test_a_video_autoencoder(prepare, tmp_path):
  size = WanVAEConfig(
    base_dim=4,
    z_dim=2,
    num_res_blocks=1,
    latents_mean=(-0.2, 0.3),
    latents_std=(0.5, 2.0),
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32),
    wan_vae.shapes(size),
  )
  codec = VideoVAE(params, size)
  model = Pipeline.load("embedded")
  recipe = dataclasses.replace(model.recipe, latent_shape=(2, 4, 4, 2))
  dataclasses.replace(model, codec=codec, recipe=recipe).save(tmp_path / "wan")
  folder = write_plain(tmp_path / "videos", 1, DIGITS)
  out = tmp_path / "set"
  prepare(f"--videos={folder}", f"--out={out}", f"--model={tmp_path / 'wan'}")
  made = json.loads((out / "metadata.json").read_text())
  assert made["codec"] == parts.identity(codec)
  assert made["codec"]["name"] == "AutoencoderKLWan"
  assert made["codec_scale"] == {"mean": [-0.2, 0.3], "deviation": [0.5, 2.0]}
  assert made["video_size"] == [5, 32, 32]
  clips = list(cut_clips(folder / "0.mp4", ClipForm(5, 32, 32, 8)))
  stored = [row["latents"] for row in latents.read(out)]
  assert len(stored) == len(clips) == 3
  for latent, clip in zip(stored, clips, strict=True):
    encoded = np.asarray(codec.encode(clip[None])[0])
    np.testing.assert_allclose(latent, encoded, rtol=0, atol=1e-4)


def test_prompts_alone(prepare, tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("\n".join(DIGITS) + "\na cat\n")
  out = tmp_path / "set"
  said = prepare(f"--prompts={file}", f"--out={out}", "--model=embedded")
  assert said == f"3 examples of 4 prompts in {out}; 1 skipped\n"
  source = latents.read(out)
  assert [row["prompt"].decode() for row in source] == list(DIGITS)
  text, _ = Pipeline.load("embedded").encode(DIGITS)
  np.testing.assert_array_equal([row["text"] for row in source], text)
  assert "latents" not in source[0]


def test_samples_of_the_teacher(prepare, tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("\n".join(DIGITS) + "\n")
  command = (
    *(f"--prompts={file}", "--model=embedded", "--synthesize", "--steps=2"),
    *("--guidance=1.5", "--samples_per_prompt=2", "--shard_size=4"),
  )
  out = tmp_path / "set"
  prepare(*command, f"--out={out}")
  model = Pipeline.load("embedded")
  model = model.with_params(model.params, model.recipe.as_teacher(2, 1.5))
  texts = [text for text in DIGITS for _ in range(2)]
  names = [f"{text}-{i}" for text in DIGITS for i in range(2)]
  wanted = model.sample_latents(
    *model.encode(texts), model.draw_noise(names, 0)
  )
  source = latents.read(out)
  assert [row["prompt"].decode() for row in source] == texts
  stored = np.stack([row["latents"] for row in source])
  np.testing.assert_allclose(stored, wanted, rtol=0, atol=1e-4)
  assert np.abs(stored[0] - stored[1]).mean() > 0.1  # their noise differs

  shard = out / "shards" / "00000.json"
  before = contents(out)
  shard.unlink()
  prepare(*command, f"--out={out}")
  assert contents(out) == before
  sentence = prepare(*command, f"--out={out}", "--seed=1", fails=True)
  assert sentence.startswith(f"{out} holds a set of other synthesize (")


PROCESS = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 1)
from dollar_jax import cli

sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow  # two programs that import jax at once
def test_two_processes_make_what_one_makes(plain, tmp_path):
  whole, out = tmp_path / "whole", tmp_path / "set"

  def start(folder, *flags):
    command = ["prepare", f"--videos={plain}", f"--out={folder}", *LINEAR]
    return subprocess.Popen(
      [sys.executable, "-c", PROCESS, *command, *flags],
      cwd=ROOT,
      env=os.environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  # of its own, too: code that tests before this have compiled may round
  # another way
  alone = start(whole)
  alone.communicate()
  assert alone.returncode == 0
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  where = f"--coordinator=127.0.0.1:{port}", "--num_processes=2"
  processes = [start(out, *where, f"--process_id={i}") for i in range(2)]
  ends = [process.communicate() for process in processes]
  assert [p.returncode for p in processes] == [0, 0], ends
  assert "14 examples of 7 videos" in ends[0][0]
  assert "examples" not in ends[1][0]
  assert contents(out) == contents(whole)


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    ([], "give either --videos=DIR or --prompts=FILE"),
    (["--videos=/nowhere"], "nothing to encode the videos with; give --model="),
    (["--videos=/nowhere", "--model=embedded"], "/nowhere holds neither metad"),
    (["--videos=/nowhere", *LINEAR, "--model=a"], "give either --model=DIR, "),
    (["--videos=/nowhere", "--codec=linear"], "--codec=linear and --fit go to"),
    (["--prompts=/nowhere"], "--prompts needs --model=DIR, whose text encoder"),
    (["--prompts=/nowhere", "--model=embedded"], "/nowhere cannot be read; gi"),
    (["--videos=a", "--model=a", "--synthesize"], "--synthesize needs --promp"),
  ],
)
def test_flags_that_do_not_go_together(prepare, tmp_path, flags, sentence):
  out = f"--out={tmp_path}/set"
  assert prepare(out, *flags, fails=True).startswith(sentence)


def test_sizes_and_folders_that_do_not_fit(prepare, plain, tmp_path):
  out = tmp_path / "set"
  command = f"--videos={plain}", f"--out={out}", *LINEAR
  for flag, sentence in (
    ("--video_size=8x30x48", "a clip of (8, 30, 48) (frames, height, width) d"),
    ("--video_size=8x32", "--video_size=8x32 is no size; give frames, height"),
    ("--fps=0", "clips of 8x32x48 (frames, height, width) at 0.0 fps cannot"),
    ("--channels=999", "latent channels is 999; patches of"),
    ("--video_size=80x32x48", "there is no clip to fit a codec to"),
  ):
    assert prepare(*command, flag, fails=True).startswith(sentence)
  (out / "thesis.tex").touch()
  sentence = prepare(*command, fails=True)
  assert sentence.startswith(f"{out} holds thesis.tex, which is no part of a d")
  assert prepare(*command, f"--out={out / 'thesis.tex'}", fails=True).endswith(
    "is a file; give a folder for the data set"
  )


def test_real_clips(prepare, clips_folder, tmp_path):
  rows = rows_of(clips_folder / "metadata.jsonl")[:3]
  table = tmp_path / "some.csv"
  table.write_text(
    "file_name,text\n"
    + "".join(f'{clips_folder / r["file_name"]},"{r["text"]}"\n' for r in rows)
  )
  out = tmp_path / "set"
  command = f"--videos={table}", f"--out={out}", "--codec=linear", "--fit"
  prepare(*command, "--fit_clips=3", "--dtype=bfloat16")
  source = latents.read(out)
  assert len(source) == 3 * 8  # 128 frames each
  made = json.loads((out / "metadata.json").read_text())
  assert (made["video_size"], made["fps"]) == ([16, 192, 320], 12.0)
  assert made["psnr"] > 20
  codec, _ = parts.load_parts(out)
  clip = next(cut_clips(clips_folder / "000.mp4", ClipForm(16, 192, 320, 12)))
  back = np.asarray(codec.decode(source[0]["latents"][None]))[0]
  assert np.abs(back.astype(int) - clip).mean() < 12
