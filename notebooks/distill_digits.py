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
# # A 50-step video model, distilled into four steps
#
# A diffusion model makes a clip by following an ODE from noise to data. With 50
# steps and guidance that is 100 evaluations of its network. Here a *student*
# learns to do it in 4:
#
# 1. **Variational score distillation.** The student $G$ makes a clip $x_0$;
#    noise is added, $x_t = (1-t)\,x_0 + t\,\epsilon$; the teacher and a *fake
#    score* (a copy of the teacher that is always trained on the student's own
#    clips) both say where the clip came from. The student moves $x_0$ by their
#    difference, $x_0^{\text{teacher}}(x_t) - x_0^{\text{fake}}(x_t)$: towards
#    what the teacher finds likelier than the student makes it.
# 2. **Consistency distillation.** From two points of one of the teacher's paths
#    the student must arrive at the same clip, which keeps it from forgetting
#    parts of the data.
#
# Everything runs on two cores in a few minutes, since the teacher that comes
# with the package is small: it draws one handwritten digit moving over 8
# frames.

# %%
import runpy
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import HTML, Image, Video, display

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import comparison, mosaic, plots
from dollar_jax.evaluation.report import Table
from dollar_jax.interop.pipeline import EMBEDDED, Pipeline
from dollar_jax.rewards.base import get_reward
from dollar_jax.rewards.features import get_features
from dollar_jax.train import metrics
from dollar_jax.train.config import from_config_dict
from dollar_jax.train.runs import train

teacher = Pipeline.load(EMBEDDED)
recipe = teacher.recipe
print(f"{recipe.steps} steps, guidance {recipe.guidance}: ", end="")
print(f"{recipe.network_evaluations} evaluations of the network a clip")

# %% [markdown]
# ## The student
#
# `configs/digits/student.py` is the run of `dollar demo`; here it is cut to
# a third of its updates. The first ones are by consistency alone, so that the
# student's clips overlap the teacher's when VSD begins.

# %%
config = runpy.run_path("../configs/digits/student.py")["get_config"]()
config.steps = 75
config.scan = True  # compiles one block of the network instead of all four
config.distill.cd_warmup = config.distill.score_warmup = 30
workdir = tempfile.mkdtemp()
student = train(from_config_dict(config), workdir, progress=False)
student.recipe

# %% [markdown]
# `score_loss` is how well the fake score knows the student's clips, `vsd_force`
# the size of the difference above, `consistency` the second loss. Healthy
# curves look like these: nothing explodes, and the fake score's loss stays near
# where it began.

# %%
rows = metrics.read(workdir)
keys = [key for key in metrics.TITLES if any(key in row for row in rows)]
figure = plots.curves(rows, {key: metrics.TITLES[key] for key in keys})
figure.savefig(Path(workdir) / "curves.png", dpi=80, facecolor="white")
Image(Path(workdir) / "curves.png")

# %% [markdown]
# ## Side by side
#
# The same captions for the teacher with its 50 steps, the teacher made to take
# only 4, and the student with 4.

# %%
models = {
  "teacher, 50 steps": teacher,
  "teacher, 4 steps": teacher.with_params(
    teacher.params, recipe.as_teacher(4, recipe.guidance)
  ),
  "student, 4 steps": student,
}
captions = moving_digits.all_captions()
prompts = [captions[i % 40] for i in range(200)]
clips = {name: model.generate(prompts) for name, model in models.items()}

shown = [0, 5, 14, 23, 32, 37]
grid = np.stack([frames[shown] for frames in clips.values()])
kind, data = mosaic.encode(mosaic.mosaic(grid, scale=3), fps=recipe.fps)
print(*(prompts[i] for i in shown), sep=" | ")
Video(
  data=data,
  embed=True,
  mimetype=kind,
  html_attributes="controls autoplay loop muted",
)

# %%
Image(plots.contact_sheet(grid, list(clips), [prompts[i] for i in shown]))

# %% [markdown]
# ## Numbers
#
# None of these was optimised. The judge was fitted to real clips and took no
# part in the training; the real clips are held out. Brackets are 95 %
# intervals; `frechet_floor` is what as many real clips score.

# %%
features, right = get_features("digits"), get_reward("caption_accuracy")
real = moving_digits.make_clips("test", 1000, seed=1)
real_features = features(real.frames)
table = []
for name, frames in clips.items():
  row = comparison.compare(
    features(frames), prompts, real_features, list(real.captions)
  )
  accuracy = float(np.mean(right(frames, prompts)))
  evaluations = models[name].recipe.network_evaluations
  table.append(
    {"model": name, "evaluations": evaluations, "captions right": accuracy}
    | {k: v for k, v in row.items() if "extra" not in k and k != "left_out"}
  )
display(HTML(Table(table).html()))

# %%
before, after = (table[i]["frechet"] for i in (1, 2))
assert after < before, "distillation brought the clips nearer to real ones"
print(
  f"4 steps: Fréchet distance {before:.2f} undistilled, {after:.2f} distilled"
)
