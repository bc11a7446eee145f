"""Model folders: what is written, what is read, what is refused."""

import dataclasses
import errno
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from dollar_jax.diffusion.process import FlowProcess, VPProcess
from dollar_jax.interop import diffusers
from dollar_jax.models.denoiser import Denoiser
from dollar_jax.models.wan import WanTransformer
from tests.interop.conftest import CONFIG
from tests.tiny import random_params

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def tree_bytes(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file()
  }


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def same(a, b):
  return a.dtype == b.dtype and np.array_equal(a, b)


def test_a_folder_gives_back_what_was_saved(saved, tiny):
  denoiser, params = diffusers.load(saved)
  assert denoiser == tiny.denoiser  # config, process, prediction and shift
  assert all(jax.tree.leaves(jax.tree.map(same, params, tiny.params)))
  assert isinstance(jax.tree.leaves(params)[0], jax.Array)
  codec = diffusers.load_codec(saved)
  assert codec.config == tiny.codec.config
  for name, array in tiny.codec.arrays.items():
    np.testing.assert_array_equal(codec.arrays[name], array)
  encoder = diffusers.load_text_encoder(saved)
  assert encoder.config == tiny.text_encoder.config
  for ours, theirs in zip(
    encoder.encode(["3 left", ""]),
    tiny.text_encoder.encode(["3 left", ""]),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert diffusers.load_recipe(saved) == tiny.recipe


def test_a_transformer_folder_alone_is_a_flow_model(saved, tiny):
  denoiser, params = diffusers.load(
    saved / "transformer", host=True, scan=False
  )
  assert denoiser.process == FlowProcess()
  assert denoiser.shift == 1.0
  assert denoiser.config == dataclasses.replace(CONFIG, scan=False)
  assert isinstance(params["block_1"]["norm2"]["bias"], np.ndarray)
  assert diffusers.load_recipe(saved / "transformer") == {}


def test_files_can_be_read_by_whoever_reads_the_folder(saved):
  mode = (saved / "model_index.json").stat().st_mode
  assert all(p.stat().st_mode == mode for p in saved.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_storage_types(tiny, tmp_path, dtype):
  diffusers.save(tmp_path / "m", tiny.denoiser, tiny.params, dtype=dtype)
  _, stored = diffusers.load(tmp_path / "m")
  assert {str(x.dtype) for x in jax.tree.leaves(stored)} == {dtype}
  _, masters = diffusers.load(tmp_path / "m", param_dtype="float32")
  assert {str(x.dtype) for x in jax.tree.leaves(masters)} == {"float32"}
  kind = jax.numpy.dtype(dtype)
  exact = jax.tree.map(lambda x: x.astype(kind), tiny.params)
  assert all(jax.tree.leaves(jax.tree.map(same, stored, exact)))


def test_float16_overflow_is_refused(tiny, tmp_path):
  params = jax.tree.map(np.copy, tiny.params)
  params["proj_out"]["bias"][0] = 1e6
  with pytest.raises(ValueError, match=r"proj_out.bias .* 1e\+06.* bfloat16"):
    diffusers.save(tmp_path / "m", tiny.denoiser, params, dtype="float16")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_vp_models_keep_process_and_prediction(tiny, tmp_path, kind, betas):
  process = VPProcess(beta_schedule=betas, snr_shift_scale=2.0)
  denoiser = Denoiser(WanTransformer(CONFIG), process, kind)
  diffusers.save(tmp_path / "m", denoiser, tiny.params)
  assert diffusers.load(tmp_path / "m")[0] == denoiser


@pytest.mark.parametrize(
  "process, kind, shift",
  [
    (FlowProcess(), "x0", 1.0),
    (VPProcess(), "flow", 1.0),
    (VPProcess(), "v", 3.0),
    (VPProcess(num_train_timesteps=10), "v", 1.0),
  ],
)
def test_what_no_scheduler_describes_is_refused(
  tiny, tmp_path, process, kind, shift
):
  denoiser = Denoiser(WanTransformer(CONFIG), process, kind, shift)
  with pytest.raises(ValueError, match="no diffusers scheduler describes"):
    diffusers.save(tmp_path / "m", denoiser, tiny.params)
  assert not list(tmp_path.iterdir())


def test_unipc_flow_shift_is_read(saved):
  file = saved / "scheduler" / "scheduler_config.json"
  unipc = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "flow_shift": 5.0,
  }
  file.write_text(json.dumps(unipc))
  assert diffusers.load(saved)[0].shift == 5.0


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"_class_name": "DDPMScheduler"}, "'DDPMScheduler'; known are FlowMatch"),
    ({"num_train_timesteps": 50}, "num_train_timesteps must be 1000"),
    ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ({"shift": -1}, "shift=-1.0 must be above 0"),
    ({"shift": "much"}, "cannot be used"),
    ({"_class_name": "UniPCMultistepScheduler"}, "flow_prediction"),
  ],
)
def test_schedulers_we_cannot_honour_are_named(saved, changes, message):
  edit(saved / "scheduler" / "scheduler_config.json", **changes)
  with pytest.raises(ValueError, match=message):
    diffusers.load(saved)


def full_disk(*_args, **_kwargs):
  raise safetensors.SafetensorError(
    "Error while serializing: I/O error: no space (os error 28)"
  )


def full_disk_os(*_args, **_kwargs):
  raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", [full_disk, full_disk_os])
def test_a_full_disk_leaves_the_earlier_model(
  saved, tiny, monkeypatch, failure
):
  before = tree_bytes(saved)
  other = jax.tree.map(lambda x: x + 1, tiny.params)
  real = safetensors.numpy.save_file
  calls = []

  def fail_second(*args, **kwargs):  # the network fits, the codec does not
    calls.append(args)
    return real(*args, **kwargs) if len(calls) == 1 else failure()

  monkeypatch.setattr(safetensors.numpy, "save_file", fail_second)
  with pytest.raises(OSError, match="No space left on device") as error:
    diffusers.save(saved, tiny.denoiser, other, tiny.codec)
  assert str(error.value).startswith("could not save the model to ")
  assert error.value.errno == errno.ENOSPC
  assert len(calls) == 2
  assert tree_bytes(saved) == before
  assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_save_replaces_the_earlier_model_whole(saved, tiny):
  other = jax.tree.map(lambda x: x + 1, tiny.params)
  diffusers.save(saved, tiny.denoiser, other)
  _, params = diffusers.load(saved)
  assert all(jax.tree.leaves(jax.tree.map(same, params, other)))
  assert not (saved / "vae").exists()
  assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_failed_rename_puts_the_earlier_model_back(saved, tiny, monkeypatch):
  before = tree_bytes(saved)
  path_type = type(saved)
  real = path_type.rename

  def rename(self, target):
    if self.name.endswith(".new"):
      raise OSError(errno.EIO, "Input/output error")
    return real(self, target)

  monkeypatch.setattr(path_type, "rename", rename)
  with pytest.raises(OSError, match="Input/output error"):
    diffusers.save(saved, tiny.denoiser, tiny.params)
  assert tree_bytes(saved) == before
  assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_save_overwrites_nothing_but_models(tiny, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="other files than a model"):
    diffusers.save(tmp_path, tiny.denoiser, tiny.params)
  with pytest.raises(ValueError, match="is a file"):
    diffusers.save(tmp_path / "notes.txt", tiny.denoiser, tiny.params)
  assert tree_bytes(tmp_path) == {"notes.txt": b"mine"}


def test_unusable_arguments_of_save_write_nothing(tiny, tmp_path):
  out = tmp_path / "m"
  for options, message in (
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"recipe": {"grid": np.ones(2)}}, "recipe cannot be written as JSON"),
    ({"recipe": {"loss": float("nan")}}, "recipe cannot be written as JSON"),
    ({"codec": object()}, "a object cannot be saved; known are"),
  ):
    with pytest.raises(ValueError, match=message):
      diffusers.save(out, tiny.denoiser, tiny.params, **options)
  wider = random_params(
    tiny.denoiser.with_config(ffn_dim=24)  # not what the denoiser says
  )
  with pytest.raises(ValueError, match="3 mis-shaped: blocks/ffn/down"):
    diffusers.save(out, tiny.denoiser, wider)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda f: (f / WEIGHTS).unlink(), "has no diffusion_pytorch_model.safet"),
    (lambda f: (f / WEIGHTS).write_bytes(b""), r"\(0 bytes\) is not a whole"),
    (
      lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
      r"bytes\) is not a whole safetensors file",
    ),
    (lambda f: (f / "transformer/config.json").unlink(), "json is missing"),
    (
      lambda f: (f / "transformer/config.json").write_text("{,"),
      "config.json is not JSON",
    ),
    (
      lambda f: (f / "transformer/config.json").write_text("[]"),
      "holds no JSON object",
    ),
    (
      lambda f: edit(f / "transformer/config.json", _class_name="FluxModel"),
      "class 'FluxModel'; known are .*'WanTransformer3DModel'",
    ),
    (
      lambda f: edit(f / "transformer/config.json", num_layers=3),
      "transformer: the weights are not those of .* 27 missing: blocks.2",
    ),
    (
      lambda f: edit(f / "transformer/config.json", patch_size=[1, 1, 1]),
      r"patch_embedding.weight is .*1, 2, 2\), expected \(24, 4, 1, 1, 1\)",
    ),
    (
      lambda f: (f / "scheduler/scheduler_config.json").unlink(),
      "scheduler_config.json is missing",
    ),
  ],
)
def test_damaged_folders_are_named_in_one_sentence(saved, damage, message):
  damage(saved)
  with pytest.raises(ValueError, match=message) as error:
    diffusers.load(saved)
  assert "\n" not in str(error.value)


def test_pickles_are_never_opened(saved, tmp_path):
  marker = tmp_path / "ran"

  class Attack:
    def __reduce__(self):
      return (marker.touch, ())

  (saved / WEIGHTS).unlink()
  for ending in (".bin", ".pt"):
    file = (saved / WEIGHTS).with_suffix(ending)
    file.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"pickled .* write .* safetensors"):
      diffusers.load(saved)
    with pytest.raises(ValueError, match="is a pickle"):
      diffusers.load(file)
    file.unlink()
  assert not marker.exists()


def shard(folder, names):
  """Cuts the weights into two files with an index."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  keys = sorted(tensors)
  weight_map = {k: names[i % 2] for i, k in enumerate(keys)}
  for name in names:
    part = {k: tensors[k] for k in keys if weight_map[k] == name}
    safetensors.numpy.save_file(part, folder / "transformer" / name)
  index = folder / f"{WEIGHTS}.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  return index


def test_shards_are_read_and_missed(saved, tiny):
  names = ["a.safetensors", "b.safetensors"]
  index = shard(saved, names)
  _, params = diffusers.load(saved)
  assert all(jax.tree.leaves(jax.tree.map(same, params, tiny.params)))
  (saved / "transformer" / names[1]).unlink()
  with pytest.raises(ValueError, match=r"lacks 1 of 2 .* b\.safetensors; fin"):
    diffusers.load(saved)
  index.write_text("{}")
  with pytest.raises(ValueError, match=r"index\.json is damaged"):
    diffusers.load(saved)


def test_quantised_weights_are_refused(saved):
  tensors = safetensors.numpy.load_file(saved / WEIGHTS)
  tensors["proj_out.bias"] = tensors["proj_out.bias"].astype(np.int8)
  safetensors.numpy.save_file(tensors, saved / WEIGHTS)
  with pytest.raises(ValueError, match=r"proj_out\.bias as I8; only float32"):
    diffusers.load(saved)


def test_wrong_paths_and_options_are_named(saved, tmp_path):
  with pytest.raises(ValueError, match="nowhere is not a folder"):
    diffusers.load(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(
    ValueError, match=r"neither transformer/ nor config\.json"
  ):
    diffusers.load(tmp_path / "empty")
  with pytest.raises(ValueError, match="model option 'sacn' is unknown"):
    diffusers.load(saved, sacn=False)


@pytest.mark.torch  # brings the hub's package
def test_a_downloaded_model_is_found_by_its_name(saved, tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  name = "some-owner/A-Model.1"
  with pytest.raises(ValueError, match=f"fetch it first: hf download {name}"):
    diffusers.load(name)
  model = tmp_path / "hub" / "models--some-owner--A-Model.1"
  shutil.copytree(saved, model / "snapshots" / "abc")
  (model / "refs").mkdir()
  (model / "refs" / "main").write_text("abc")
  _, params = diffusers.load(name)
  _, wanted = diffusers.load(saved)
  assert all(jax.tree.leaves(jax.tree.map(same, params, wanted)))


@pytest.mark.parametrize(
  "load, part",
  [
    (diffusers.load_codec, "vae"),
    (diffusers.load_text_encoder, "text_encoder"),
  ],
)
def test_parts_are_checked_like_networks(saved, load, part):
  config = saved / part / "config.json"
  good = config.read_text()
  edit(config, _class_name="UMT5EncoderModel")
  with pytest.raises(ValueError, match="'UMT5EncoderModel'; known are"):
    load(saved)
  config.write_text(
    json.dumps({"_class_name": json.loads(good)["_class_name"]})
  )
  with pytest.raises(ValueError, match="does not hold a whole"):
    load(saved)
  config.write_text(good)
  weights = next((saved / part).glob("*.safetensors"))
  weights.write_bytes(weights.read_bytes()[:-1])
  with pytest.raises(ValueError, match="is not a whole safetensors file"):
    load(saved)
  for file in (saved / part).iterdir():
    file.unlink()
  (saved / part).rmdir()
  with pytest.raises(ValueError, match=f"has no {part}/"):
    load(saved)


@pytest.fixture
def experts(tiny, tmp_path):
  """Folder of a model of two experts, as Wan 2.2 A14B."""
  denoiser = dataclasses.replace(tiny.denoiser, boundary=0.875)
  params = {"transformer": tiny.params, "transformer_2": tiny.params}
  diffusers.save(tmp_path / "experts", denoiser, params)
  return tmp_path / "experts"


def test_two_experts_come_back(experts, tiny):
  denoiser, params = diffusers.load(experts)
  assert denoiser == dataclasses.replace(tiny.denoiser, boundary=0.875)
  assert list(params) == ["transformer", "transformer_2"]
  jax.tree.map(
    np.testing.assert_array_equal, params["transformer_2"], tiny.params
  )


@pytest.mark.parametrize("boundary", [1.5, 0.0, "high", True])
def test_a_boundary_that_cannot_be_is_named(experts, boundary):
  edit(experts / "model_index.json", boundary_ratio=boundary)
  with pytest.raises(ValueError, match="must lie between 0 and 1"):
    diffusers.load(experts)


def test_experts_that_do_not_fit_are_named(experts):
  edit(experts / "transformer_2" / "config.json", ffn_dim=24)
  with pytest.raises(ValueError, match="two transformers of different sizes"):
    diffusers.load(experts)
  shutil.rmtree(experts / "transformer_2")
  with pytest.raises(ValueError, match=r"transformer_2/config\.json is"):
    diffusers.load(experts)
