"""Exported folders opened by diffusers itself, and its own by us."""

import dataclasses

import numpy as np
import pytest

from dollar_jax.diffusion.process import VPProcess
from dollar_jax.interop import diffusers as ours
from dollar_jax.interop import keymaps
from dollar_jax.interop.schedulers import COGVIDEOX
from dollar_jax.models.denoiser import Denoiser

try:
  import diffusers
  import torch
except ImportError:  # tests/conftest.py skips the marked tests, or fails them
  diffusers = torch = None

pytestmark = pytest.mark.torch


def bits(tensor):
  return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_diffusers_to_ours_and_back_is_bit_equal(tiny, tmp_path, dtype):
  fields = keymaps.TRANSFORMERS["WanTransformer3DModel"].to_json(
    tiny.denoiser.config
  )
  torch.manual_seed(0)
  model = diffusers.WanTransformer3DModel(**fields).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / "theirs")
  denoiser, params = ours.load(tmp_path / "theirs")
  assert denoiser.config == tiny.denoiser.config
  ours.save(tmp_path / "ours", denoiser, params)
  back = diffusers.WanTransformer3DModel.from_pretrained(
    tmp_path / "ours" / "transformer", torch_dtype=getattr(torch, dtype)
  )
  stored = model.state_dict()
  read = safetensors_of(tmp_path / "ours")
  assert stored.keys() == read.keys() == back.state_dict().keys()
  for key, tensor in stored.items():
    assert read[key].dtype == tensor.dtype
    assert bits(read[key]) == bits(tensor), key


def test_an_image_model_goes_there_and_back(tiny, tmp_path):
  config = dataclasses.replace(
    tiny.denoiser.config, image_dim=10, added_kv_proj_dim=24
  )
  fields = keymaps.TRANSFORMERS["WanTransformer3DModel"].to_json(config)
  torch.manual_seed(0)
  model = diffusers.WanTransformer3DModel(**fields)
  stored = model.state_dict()
  # the published files have a norm that diffusers does not read
  old = {
    f"blocks.{i}.attn2.norm_added_q.weight": torch.ones(24) for i in (0, 1)
  }
  model.save_pretrained(tmp_path / "theirs", state_dict=stored | old)
  denoiser, params = ours.load(tmp_path / "theirs")
  assert denoiser.config == config
  ours.save(tmp_path / "ours", denoiser, params)
  read = safetensors_of(tmp_path / "ours")
  assert stored.keys() == read.keys()
  for key, tensor in stored.items():
    assert bits(read[key]) == bits(tensor), key


def safetensors_of(folder):
  from safetensors.torch import load_file

  return load_file(
    folder / "transformer" / "diffusion_pytorch_model.safetensors"
  )


def test_the_pipeline_opens_and_is_the_same_network(saved):
  # the parts that are ours alone have no class there
  pipe = diffusers.DiffusionPipeline.from_pretrained(
    saved, vae=None, text_encoder=None, tokenizer=None
  )
  assert isinstance(pipe, diffusers.WanPipeline)
  with torch.no_grad():
    theirs = pipe.transformer(
      torch.ones(1, 4, 1, 2, 2),
      torch.tensor([500.0]),
      torch.ones(1, 3, 6),
      return_dict=False,
    )[0]
  denoiser, params = ours.load(saved)
  mine = denoiser.raw(
    params, np.ones((1, 1, 2, 2, 4)), np.array([0.5]), np.ones((1, 3, 6))
  )
  np.testing.assert_allclose(
    mine, theirs.movedim(1, -1).numpy(), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_an_exported_vp_schedule_is_ours(tiny, tmp_path, betas):
  process = VPProcess(beta_schedule=betas, snr_shift_scale=3.0)
  denoiser = Denoiser(tiny.denoiser.module, process, "v")
  ours.save(tmp_path / "m", denoiser, tiny.params)
  scheduler = diffusers.CogVideoXDDIMScheduler.from_pretrained(
    tmp_path / "m" / "scheduler"
  )
  assert scheduler.config.prediction_type == "v_prediction"
  theirs = scheduler.alphas_cumprod.numpy()
  index = np.arange(1, 1001, dtype=np.float32)
  mine = np.asarray(process.alpha(index / 1000)) ** 2
  np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", COGVIDEOX)
def test_cogvideox_schedules_are_read_as_they_are(saved, kind):
  theirs = getattr(diffusers, kind)(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    snr_shift_scale=1.0,
  )
  theirs.save_pretrained(saved / "scheduler")
  denoiser, _ = ours.load(saved)
  assert denoiser.prediction == "v"
  index = np.arange(1, 1001, dtype=np.float32)
  mine = np.asarray(denoiser.process.alpha(index / 1000)) ** 2
  np.testing.assert_allclose(mine, theirs.alphas_cumprod.numpy(), atol=1e-4)
