"""Figures for reports and documents.

They are drawn in black on nothing, so that a page can give them its own ink,
and by matplotlib's objects alone: no global state, no window system.
"""

import io
import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from dollar_jax.evaluation import mosaic

COLORS = ("#4c8fe0", "#e8890c", "#2aa876", "#d3568c", "#8f7ae5", "#8a8f98")
"""Readable on white and on black."""

_STYLE = {
  "axes.grid": True,
  "axes.prop_cycle": mpl.cycler(color=COLORS),
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": "medium",
  "axes.titlelocation": "left",
  "font.size": 10,
  "grid.alpha": 0.25,
  "grid.color": "#808080",
  "legend.frameon": False,
  "lines.linewidth": 1.8,
  "svg.fonttype": "none",
}

TENTHS = 10
"""Groups of a calibration plot."""

Rows = Sequence[Mapping[str, float]]
"""Metrics, one row a step; a key need not be in every row."""


def curves(
  rows: Rows,
  keys: Mapping[str, str] | Sequence[str],
  *,
  x: str = "step",
  columns: int = 3,
) -> Figure:
  """One small plot for each metric, as losses differ in scale.

  Args:
    rows: metrics.
    keys: metrics to plot, or metric → title.
    x: key of the horizontal axis.
    columns: plots side by side.

  Raises:
    ValueError: naming the metrics that no row has.
  """
  titles = keys if isinstance(keys, Mapping) else {key: key for key in keys}
  return curves_of_runs({"": rows}, titles, x=x, columns=columns)


def curves_of_runs(
  runs: Mapping[str, Rows],
  keys: Mapping[str, str],
  *,
  x: str = "step",
  columns: int = 3,
) -> Figure:
  """`curves` with a line for each run that has the metric.

  Args:
    runs: name of a run → metrics.
    keys: metric → title.
    x: key of the horizontal axis.
    columns: plots side by side.

  Raises:
    ValueError: naming the metrics that no row has.
  """
  series = {
    key: {
      name: _series(rows, x, key)
      for name, rows in runs.items()
      if len(runs) == 1 or any(key in row for row in rows)
    }
    for key in keys
  }
  colors = dict(zip(runs, itertools.cycle(COLORS), strict=False))
  columns = min(columns, len(keys))
  height = -(-len(keys) // columns)
  lines = {}
  with mpl.rc_context(_STYLE):
    figure = Figure((3.2 * columns, 2.3 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for ax, (key, title) in zip(axes.flat, keys.items(), strict=False):
      for name, points in series[key].items():
        few = "." if len(points[0]) < 30 else None
        [lines[name]] = ax.plot(*points, marker=few, color=colors[name])
      ax.set(title=title, xlabel=x)
    for ax in axes.flat[len(keys) :]:
      ax.remove()
    if len(runs) > 1:
      figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside upper left",
        ncols=min(len(lines), 4),
      )
  return figure


def reward_curves(
  rows: Rows,
  *,
  latent: str = "lrm_reward",
  true: str = "true_reward",
  x: str = "step",
) -> Figure:
  """The latent model's reward and the true one on one pair of axes.

  Where they part, the student exploits the latent model.

  Raises:
    ValueError: naming the metrics that no row has.
  """
  series = {
    "true reward of decoded videos": (_series(rows, x, true), "o-"),
    "reward that the latent model predicts": (_series(rows, x, latent), "s--"),
  }
  with mpl.rc_context(_STYLE):
    figure = Figure((6.4, 3.2), layout="constrained")
    ax = figure.subplots()
    for label, (points, form) in series.items():
      ax.plot(*points, form, label=label, markersize=4.5)
    ax.set(xlabel=x, ylabel="reward")
    ax.legend(loc="best")
  return figure


def guard_curves(rows: Rows, optimised: Sequence[str]) -> bytes:
  """What a guard saw: what is optimised beside what is only watched.

  Args:
    rows: metrics of a run with a guard, "guard/NAME" for each reward, and
      "guard_limit/NAME" where the run is to end, which is dashed.
    optimised: names of the rewards that are climbed; the latent model's
      estimate of their sum, if there is one, shares the first plot.

  Returns:
    a PNG file, on white.

  Raises:
    ValueError: if no row has such metrics.
  """
  main = f"guard/{optimised[0]}" if len(optimised) == 1 else "guard/sum"
  known = {key for row in rows for key in row if key.startswith("guard/")}
  hidden = {main, "guard/sum", "guard/latent", "guard/latent_spearman"}
  titles = {main: f"optimised: {main.removeprefix('guard/')}"}
  for key in sorted(known - hidden):
    name = key.removeprefix("guard/")
    titles[key] = ("part: " if name in optimised else "watched: ") + name
  figure = curves(rows, titles)
  for ax, key in zip(figure.axes, titles, strict=True):
    limit = key.replace("guard/", "guard_limit/")
    if any(limit in row for row in rows):
      points = _series(rows, "step", limit)
      ax.plot(*points, "--", color=COLORS[-1], linewidth=1.2, label="limit")
  first = figure.axes[0]
  first.lines[0].set_label("true")
  if "guard/latent" in known:
    points = _series(rows, "step", "guard/latent")
    first.plot(*points, "s--", color=COLORS[1], label="latent model")
  first.legend(loc="best", frameon=False)
  return _png(figure)


def calibration(pairs: np.ndarray, name: str) -> bytes:
  """How far a latent reward model's estimates are to be believed.

  Every pair is a dot; tenths of them, by estimate, are a mean with two standard
  errors. On the dashed line an estimate is what comes true.

  Args:
    pairs: [N, 2], estimates of samples that the model had not seen, and their
      true rewards; pairs with NaN are left out.
    name: of the reward.

  Returns:
    a PNG file, on white.

  Raises:
    ValueError: if there are fewer than ten pairs.
  """
  pairs = pairs[np.isfinite(pairs).all(axis=1)]
  if len(pairs) < TENTHS:
    raise ValueError(
      f"{len(pairs)} pairs show no calibration; give at least {TENTHS}"
    )
  parts = np.array_split(pairs[np.argsort(pairs[:, 0])], TENTHS)
  means = np.array([part.mean(axis=0) for part in parts])
  errors = [part[:, 1].std() / np.sqrt(len(part)) for part in parts]
  rank = "a constant"
  if np.ptp(pairs, axis=0).all():
    rank = f"Spearman {stats.spearmanr(*pairs.T).statistic:.2f}"
  with mpl.rc_context(_STYLE):
    figure = Figure((4.6, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot(*pairs.T, ".", markersize=3, alpha=0.35)
    ax.errorbar(*means.T, 2 * np.array(errors), fmt="o", color=COLORS[1])
    ends = [pairs.min(), pairs.max()]
    ax.plot(ends, ends, "--", color=COLORS[-1], linewidth=1.2)
    ax.set(
      xlabel="estimate of the latent model",
      ylabel="true reward",
      title=f"{name}: {rank}, {len(pairs)} unseen samples",
    )
  return _png(figure)


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=120)
  return file.getvalue()


def contact_sheet(
  clips: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  frames: int = 4,
  scale: int = 2,
) -> bytes:
  """A still picture of clips: every clip a strip of some of its frames.

  Args:
    clips: uint8 [R, C, F, H, W, 3].
    rows: R names.
    columns: C prompts.
    frames: frames shown of each clip, evenly spaced from first to last.
    scale: every pixel becomes a square of this side.

  Returns:
    a PNG file, on white.

  Raises:
    ValueError: if the names do not fit the clips.
  """
  clips = np.asarray(clips)
  check_names(clips, rows, columns)
  shown = np.linspace(0, clips.shape[2] - 1, frames).round().astype(int)
  strips = np.concatenate([clips[:, :, i] for i in shown], axis=3)
  sheet = mosaic.mosaic(strips[:, :, None], scale)[0]
  dpi = 100
  height, width = np.array(sheet.shape[:2]) / dpi
  with mpl.rc_context({**_STYLE, "axes.grid": False}):
    # the clips fill the figure, pixel for pixel; the names stand outside
    figure = Figure((width, height), dpi=dpi)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_xticks(_centres(len(columns), sheet.shape[1]), columns)
    ax.set_yticks(_centres(len(rows), sheet.shape[0]), rows)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight")
  return file.getvalue()


def check_names(
  clips: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
  """Checks that a grid of clips [R, C, ...] has R and C names.

  Raises:
    ValueError: if it has not.
  """
  if clips.shape[:2] != (len(rows), len(columns)):
    raise ValueError(
      f"clips of shape {clips.shape} have {len(rows)} names for rows and "
      f"{len(columns)} for columns; the first two axes must match them"
    )


def _series(rows: Rows, x: str, key: str) -> tuple[list[float], list[float]]:
  points = [(row[x], row[key]) for row in rows if key in row and x in row]
  if not points:
    known = sorted({name for row in rows for name in row} - {x})
    raise ValueError(
      f"no row has the metric {key!r} and {x!r}; there are: {', '.join(known)}"
    )
  return tuple(map(list, zip(*points, strict=True)))


def _centres(count: int, size: int) -> np.ndarray:
  return (np.arange(count) + 0.5) * size / count - 0.5
