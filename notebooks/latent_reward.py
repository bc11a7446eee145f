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
# # Bring your own metric
#
# Any function of finished clips can be a reward: it needs no gradient and may
# be slow. A small network, the **latent reward model** $R_\psi$, learns from
# latents what the metric says of the decoded clips, and the student climbs
# $\nabla_{x_0} R_\psi(x_0)$. Nothing goes back through the decoder or through
# the metric.

# %%
import runpy
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import HTML, Image, display

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import comparison, intervals, plots
from dollar_jax.evaluation.report import Table
from dollar_jax.rewards.base import get_reward, register
from dollar_jax.rewards.features import get_features
from dollar_jax.train import metrics
from dollar_jax.train.config import from_config_dict
from dollar_jax.train.runs import train

# %% [markdown]
# ## The metric
#
# Bold strokes: the per cent of pixels that are lit. A threshold has no
# gradient, so that nothing but a learnt model of it can be climbed.


# %%
@register("boldness")
def boldness(frames, prompts):
  """Per cent of lit pixels; frames are uint8 [B, F, H, W, 3]."""
  return 100 * (frames > 128).mean(axis=(1, 2, 3, 4))


# %% [markdown]
# ## A student to tune
#
# A short distillation of the teacher in the package (`distill_digits.ipynb`
# explains it), by consistency alone: without VSD there is no fake score to
# train, which saves minutes here. Leave `vsd_weight` at the config's 1 for
# clips that are worth showing. `scan` compiles one block of the network instead
# of all four.


# %%
def config_of(name, **changes):
  """A config of configs/digits with other entries, by dotted name."""
  config = runpy.run_path(f"../configs/digits/{name}.py")["get_config"]()
  config.scan = True
  config.distill.vsd_weight = 0.0
  for entry, value in changes.items():
    config.update_from_flattened_dict({entry.replace("__", "."): value})
  return from_config_dict(config)


folder = Path(tempfile.mkdtemp())
data = str(folder / "data")
student = train(
  config_of("student", steps=60, distill__cd_warmup=0),
  str(folder / "student"),
  False,
  data,
)

# %% [markdown]
# ## Tuning
#
# `reward.py` goes on from that student with the same loss, which holds it near
# the teacher while the reward pulls. `reward_weight` says how hard: at the
# config's 0.2, which VSD would withstand, clips would lose their captions.

# %%
tuned = train(
  config_of(
    "reward",
    student=str(folder / "student"),
    distill__reward_weight=0.05,
    reward__name="boldness",
    reward__warmup_labels=256,
    steps=40,
  ),
  str(folder / "tuned"),
  False,
  data,
)

# %% [markdown]
# The metric of decoded clips beside what the latent model predicts for them.
# Where the two part, the student has found the model's errors rather than the
# metric.

# %%
rows = metrics.read(str(folder / "tuned"))
figure = plots.reward_curves(rows)
figure.savefig(folder / "reward.png", dpi=80, facecolor="white")
display(Image(folder / "reward.png"))
display(Image(folder / "tuned" / "calibration.png", width=420))

# %% [markdown]
# ## What it gained, and what it cost
#
# The same captions and noise before and after. Only `boldness` was optimised.

# %%
captions = moving_digits.all_captions()
prompts = [captions[i % 40] for i in range(200)]
features, right = get_features("digits"), get_reward("caption_accuracy")
real = moving_digits.make_clips("test", 1000, seed=1)
real_features = features(real.frames)
clips = {
  "before": student.generate(prompts),
  "after": tuned.generate(prompts),
}
table = []
for name, frames in clips.items():
  row = comparison.compare(
    features(frames), prompts, real_features, list(real.captions)
  )
  bold = intervals.mean(boldness(frames, prompts))
  table.append(
    {
      "student": name,
      "boldness": bold.value,
      "boldness_interval": bold[1:],
      "captions right": float(np.mean(right(frames, prompts))),
    }
    | {k: v for k, v in row.items() if k.startswith(("frechet", "diver"))}
  )
display(HTML(Table(table).html()))

# %%
shown = [0, 5, 14, 23, 32, 37]
grid = np.stack([frames[shown] for frames in clips.values()])
Image(plots.contact_sheet(grid, list(clips), [prompts[i] for i in shown]))

# %%
gain = intervals.mean(
  boldness(clips["after"], prompts) - boldness(clips["before"], prompts)
)
assert gain.low > 0, "the metric rose by more than chance"
print(f"gain, paired: {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]")
