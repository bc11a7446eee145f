"""A latent reward model learns what was preferred; the student climbs it."""

import json
import shutil

import numpy as np
import pytest

from dollar_jax.data import moving_digits
from dollar_jax.data.videos import video_name, write_video
from dollar_jax.models.latent_reward import LatentRewardConfig
from dollar_jax.parallel.mesh import make_mesh
from dollar_jax.train import metrics
from dollar_jax.train.config import (
  DistillConfig,
  GuardConfig,
  OptimizerConfig,
  RewardConfig,
  TrainConfig,
)
from dollar_jax.train.labels import spearman
from dollar_jax.train.models import open_model
from dollar_jax.train.preference_tuner import PreferenceTuner
from dollar_jax.train.shared_labels import Decoder

PAIRS = 240
SIZE = LatentRewardConfig(width=16, depth=1)


def _brightness(frames):
  return frames.mean(axis=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A folder of clips and of votes for the brighter ones."""
  folder = tmp_path_factory.mktemp("study")
  clips = moving_digits.make_clips("train", 2 * PAIRS)
  bright, votes = _brightness(clips.frames), []
  for side in ("a", "b"):
    (folder / side).mkdir()
  for i in range(PAIRS):
    # every fortieth clip has the same caption
    pair = {"a": i + i // 40 * 40, "b": i + i // 40 * 40 + 40}
    name = video_name(clips.captions[i], i)
    for side, clip in pair.items():
      write_video(folder / side / name, clips.frames[clip], 8)
    better = max(pair, key=lambda side: bright[pair[side]])
    votes.append(
      {
        "question": "quality",
        "prompt": clips.captions[i],
        "a": name,
        "b": name,
        "choice": better if i % 10 else "tie",
      }
    )
  content = {"rater": "anna", "votes": votes}
  content |= {side: str(folder / side) for side in ("a", "b")}
  (folder / "votes.json").write_text(json.dumps(content))
  return folder


def _config(file, size=SIZE, **changes):
  settings = {"name": "votes", "votes": (str(file),), "question": "quality"}
  settings |= {"warmup_steps": 120, "batch_size": 32} | changes
  return TrainConfig(
    task="distill",
    distill=DistillConfig(reward_weight=1.0),
    reward=RewardConfig(**settings),
    reward_optimizer=OptimizerConfig(learning_rate=3e-3),
    latent_reward=size,
  )


@pytest.fixture
def make_tuner(runs):
  """Makes a tuner for the embedded codec's kin."""
  base = open_model(str(runs.whole("teacher")), host=True)

  def make(config):
    mesh = make_mesh()
    text = base.null_prompt["null_text"].shape
    decoder = Decoder(base.codec, mesh)
    sizes = base.recipe.latent_shape, text
    return PreferenceTuner(
      config, base.codec, base.encode, decoder, *sizes, mesh
    )

  return make, base


def test_the_model_knows_what_is_preferred(make_tuner, study):
  make, base = make_tuner
  tuner = make(_config(study / "votes.json"))
  state = tuner.init()
  assert not tuner.model.config.text_conditioned
  _, before = tuner.refresh(state, {}, None, 1)
  state, fitted = tuner.warm_up(state, {}, None)
  _, after = tuner.refresh(state, {}, None, 1)
  assert fitted["loss"] < 0.5 < np.log(2)
  assert after["lrm_accuracy"] > 0.8 > before["lrm_accuracy_fitted"]
  # of clips that nobody has seen
  fresh = moving_digits.make_clips("test", 64)
  x0 = np.asarray(base.codec.encode(fresh.frames))
  guesses = tuner._network.guesses(state.network.params, [(x0, None, None)])
  assert spearman(guesses.mean(axis=0), _brightness(fresh.frames)) > 0.8


def test_members_differ_in_what_they_say_and_not_in_their_offsets(
  make_tuner, study
):
  make, _ = make_tuner
  size = LatentRewardConfig(width=8, depth=1, members=3)
  tuner = make(_config(study / "votes.json", size, warmup_steps=40))
  state, _ = tuner.warm_up(tuner.init(), {}, None)
  values = tuner._values(state.network.params, tuner._fitted + tuner._hidden)
  np.testing.assert_allclose(values.mean(axis=(1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(values.std(axis=(1, 2)), 1, atol=1e-4)
  assert len(np.unique(values.round(3), axis=0)) == 3


def test_prompts_are_embedded_only_where_they_are_read(make_tuner, study):
  make, _ = make_tuner
  tuner = make(_config(study / "votes.json"))
  tuner._encode_text = None  # calling it would fail
  tuner.init()


def test_the_same_seed_holds_out_the_same_pairs(make_tuner, study):
  make, _ = make_tuner
  tuners = [make(_config(study / "votes.json")) for _ in range(2)]
  for tuner in tuners:
    tuner.init()
  one, two = tuners
  assert one._hidden == two._hidden
  assert len(one._hidden) == round(0.2 * PAIRS)
  assert not {v.a for v in one._hidden} & {v.a for v in one._fitted}


@pytest.mark.parametrize("question, reads", [("text", True), ("", True)])
def test_the_model_reads_prompts_where_the_question_is_about_them(
  make_tuner, study, question, reads
):
  make, _ = make_tuner
  tuner = make(_config(study / "none.json", question=question))
  assert tuner.model.config.text_conditioned is reads
  (program,) = tuner.programs({}, {}, None).values()
  assert "text" in program.args[2]


def test_votes_that_teach_nothing_are_refused(make_tuner, study, tmp_path):
  make, _ = make_tuner
  with pytest.raises(ValueError, match="0 votes on 'motion', of which 0 pairs"):
    make(_config(study / "votes.json", question="motion")).init()
  content = json.loads((study / "votes.json").read_text())
  content["votes"] = content["votes"][::10]
  ties = tmp_path / "ties.json"
  ties.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="leave no preference to learn from"):
    make(_config(ties)).init()


def test_clips_that_are_not_the_models_are_refused(make_tuner, study, tmp_path):
  make, _ = make_tuner
  content = json.loads((study / "votes.json").read_text())
  name = content["votes"][1]["a"]
  content["votes"] = content["votes"][1:2]
  content["a"] = str(tmp_path)
  file = tmp_path / "votes.json"
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="which was voted on, is not there"):
    make(_config(file)).init()
  for shape, reason in (
    ((16, 32, 32, 3), "has 16 frames of 32x32, which is a latent of"),
    ((8, 30, 32, 3), "cannot be encoded: a clip of .* does not divide"),
  ):
    write_video(tmp_path / name, np.zeros(shape, np.uint8), 8)
    with pytest.raises(ValueError, match=reason):
      make(_config(file)).init()


def test_a_run_climbs_votes_and_goes_on(runs, dollar, study, read_state):
  workdir = runs.fresh()
  changes = {
    "steps": 6,
    "distill__vsd_weight": 0.0,
    "reward__name": "votes",
    "reward__votes": (str(study / "votes.json"),),
    "guard__every": 3,
  }
  command = runs.command("reward", workdir, **changes)
  assert dollar(command)[0] == 0
  rows = metrics.read(workdir)
  told = [row["step"] for row in rows if "lrm_accuracy" in row]
  assert told == [3, 6]
  assert all("latent_reward" in row for row in rows)
  looks = [row for row in rows if "guard/latent" in row]
  assert [row["step"] for row in looks] == [1, 3, 6]
  assert all(row["guard/sum"] == 0 for row in looks)
  whole = read_state(workdir, 6)
  shutil.rmtree(workdir / "checkpoints" / "6")
  shutil.rmtree(workdir / "model")
  assert dollar(command)[0] == 0
  again = read_state(workdir, 6)
  for name, array in whole.items():
    np.testing.assert_array_equal(again[name], array, err_msg=name)
  # of equals the guard keeps the latest
  assert again["['networks']['guard']['best_step']"] == 6


@pytest.mark.parametrize(
  "reward, more, message",
  [
    ({"name": "votes"}, {}, "reward.votes is \\(\\); it must be given if, and"),
    ({"votes": ("v",)}, {}, "only if, config.reward.name is 'votes'"),
    (
      {"name": "votes", "votes": ("v",), "question": "sound"},
      {},
      "reward.question is 'sound'; it must be one of",
    ),
    ({"held_out": 1.0}, {}, "held_out is 1.0; it must be 0 to below 1"),
    (
      {"name": "votes", "votes": ("v",)},
      {"distill": DistillConfig(reward_weight=1.0, ddpo_weight=1.0)},
      "climbed by reward_weight alone",
    ),
    (
      {"name": "votes", "votes": ("v",)},
      {"guard": GuardConfig(every=10)},
      "guard.watch is \\(\\); it must be given, as votes say nothing of",
    ),
  ],
)
def test_settings_that_do_not_fit_votes(reward, more, message):
  settings = {"distill": DistillConfig(reward_weight=1.0)} | more
  with pytest.raises(ValueError, match=message):
    TrainConfig(task="distill", reward=RewardConfig(**reward), **settings)
