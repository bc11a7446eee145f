# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # diffusers in, student out
#
# A teacher that PyTorch saved, distilled in JAX, and back: the student's folder
# opens with diffusers, with a scheduler that takes the student's steps. Weights
# are safetensors both ways, and nothing is pickled.

# %%
import json
import os
import runpy
import tempfile
import warnings
from pathlib import Path

os.environ["DIFFUSERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import diffusers
import jax.numpy as jnp
import numpy as np
import torch
from IPython.display import Image

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import plots
from dollar_jax.interop.pipeline import EMBEDDED, Pipeline
from dollar_jax.train.config import from_config_dict
from dollar_jax.train.runs import train

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A teacher from PyTorch
#
# Any Wan or CogVideoX that diffusers opens will do; `hf download
# Wan-AI/Wan2.1-T2V-1.3B-Diffusers` brings a real one. So that this runs
# anywhere, the small Wan of moving digits is opened *by diffusers*, and saved
# by it.

# %%
network = diffusers.WanTransformer3DModel.from_pretrained(
  EMBEDDED, subfolder="transformer"
)
theirs = folder / "teacher"
Pipeline.load(EMBEDDED).save(theirs)  # codec, text encoder and recipe
network.save_pretrained(theirs / "transformer")
print(sorted(path.name for path in theirs.iterdir()))
config = json.loads((theirs / "transformer" / "config.json").read_text())
print(config["_class_name"], "of", config["num_layers"], "layers")

# %% [markdown]
# ## Into JAX
#
# The same latents, time and text through both networks. (Ours has channels last
# and times from 0 to 1; diffusers' channels come second, and its times go to
# 1000.)

# %%
teacher = Pipeline.load(theirs)
prompts = moving_digits.all_captions()[:4]
text, mask = teacher.encode(prompts)
shape = (4, *teacher.recipe.latent_shape)
x_t = np.random.default_rng(0).normal(size=shape).astype(np.float32)


def in_torch(network, x_t, t):
  """What diffusers' network answers, with the channels last."""
  with torch.no_grad():
    out = network(
      torch.from_numpy(x_t).movedim(-1, 1),
      torch.full((len(x_t),), 1000.0 * t),
      torch.from_numpy(np.array(text)),
      return_dict=False,
    )[0]
  return out.movedim(1, -1).numpy()


def in_jax(pipeline, x_t, t):
  """What ours answers: the velocity."""
  times = jnp.full((len(x_t),), t)
  return np.asarray(
    pipeline.denoiser.raw(pipeline.params, x_t, times, text, mask)
  )


difference = np.abs(in_jax(teacher, x_t, 0.7) - in_torch(network, x_t, 0.7))
print(f"largest difference: {difference.max():.1e}")
assert difference.max() < 2e-5

# %% [markdown]
# ## Distilled
#
# A short run of `configs/digits/student.py`; `dollar train` is the same from a
# shell.

# %%
config = runpy.run_path("../configs/digits/student.py")["get_config"]()
config.teacher = str(theirs)
config.steps, config.distill.cd_warmup = 60, 40
config.distill.score_warmup = 40
config.distill.fresh_noise = 1.0  # what diffusers' scheduler does
train(from_config_dict(config), str(folder / "run"), progress=False)
ours = folder / "run" / "model"
print(sorted(path.name for path in ours.iterdir()))

# %% [markdown]
# ## And back
#
# diffusers opens the student's network; its answers are ours.

# %%
student = Pipeline.load(ours)
back = diffusers.WanTransformer3DModel.from_pretrained(
  ours, subfolder="transformer"
)
difference = np.abs(in_jax(student, x_t, 0.7) - in_torch(back, x_t, 0.7))
print(f"largest difference: {difference.max():.1e}")
assert difference.max() < 2e-5
moved = np.abs(in_torch(back, x_t, 0.7) - in_torch(network, x_t, 0.7))
print(f"the student differs from its teacher by up to {moved.max():.2f}")
assert moved.max() > 0.01

# %% [markdown]
# ## Sampled by diffusers
#
# The folder's scheduler knows the student's times. diffusers denoises, our
# codec decodes, and beside it is what `Pipeline.generate` makes of other noise.

# %%
scheduler = diffusers.FlowMatchLCMScheduler.from_pretrained(
  ours, subfolder="scheduler"
)
scheduler.set_timesteps(len(student.recipe.grid))
print("times:", [round(float(t), 1) for t in scheduler.timesteps])
assert np.allclose(scheduler.timesteps / 1000, student.recipe.grid, atol=1e-5)
torch.manual_seed(0)
latents = torch.randn(4, shape[-1], *shape[1:4])
with torch.no_grad():
  for t in scheduler.timesteps:
    velocity = back(
      latents,
      t.expand(4),
      torch.from_numpy(np.array(text)),
      return_dict=False,
    )[0]
    latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
frames = np.asarray(student.codec.decode(latents.movedim(1, -1).numpy()))
grid = np.stack([frames, student.generate(prompts)])
Image(plots.contact_sheet(grid, ["diffusers", "dollar_jax"], prompts))
