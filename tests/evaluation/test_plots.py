"""Plots show the rows they are given; a contact sheet shows the clips."""

import io

import numpy as np
import pytest
from PIL import Image

from dollar_jax.evaluation import mosaic, plots

ROWS = [
  {"step": 0, "vsd": 3.0, "true_reward": 1.0, "lrm_reward": 1.1},
  {"step": 1, "vsd": 2.0},
  {"step": 2, "vsd": 1.5, "true_reward": 1.2, "lrm_reward": 1.9},
]


def points(line):
  return list(zip(*line.get_data(), strict=True))


def test_curves_draw_every_metric_where_it_was_measured():
  figure = plots.curves(ROWS, {"vsd": "VSD", "true_reward": "reward"})
  vsd, reward = figure.axes
  assert points(vsd.lines[0]) == [(0, 3.0), (1, 2.0), (2, 1.5)]
  assert points(reward.lines[0]) == [(0, 1.0), (2, 1.2)]
  assert [vsd.get_title("left"), reward.get_title("left")] == ["VSD", "reward"]


def test_curves_leave_no_empty_axes():
  rows = [{"step": 0, **dict.fromkeys("abcd", 1.0)}]
  assert len(plots.curves(rows, list("abcd")).axes) == 4


def test_latent_and_true_reward_share_one_pair_of_axes():
  [axes] = plots.reward_curves(ROWS).axes
  true, latent = axes.lines
  assert points(true) == [(0, 1.0), (2, 1.2)]
  assert points(latent) == [(0, 1.1), (2, 1.9)]
  assert true.get_marker() != latent.get_marker() != "None"
  assert len(axes.get_legend().texts) == 2


def test_a_guard_s_plot_has_what_is_climbed_and_what_is_watched(monkeypatch):
  drawn = []
  draw = plots.curves

  def watch(*args, **kwargs):
    drawn.append(draw(*args, **kwargs))
    return drawn[-1]

  monkeypatch.setattr(plots, "curves", watch)
  row = {"guard/a": 2.0, "guard/b": 3.0, "guard/sum": 0.5, "guard/latent": 2.5}
  limit = {"guard_limit/b": 4.0}
  rows = [{"step": 0, "vsd": 1.0, **row}, {"step": 9, **row, **limit}]
  png = plots.guard_curves(rows, ["a"])
  assert Image.open(io.BytesIO(png)).format == "PNG"
  plots.guard_curves(rows, ["a", "b"])
  titles = [[ax.get_title("left") for ax in f.axes] for f in drawn]
  assert titles == [
    ["optimised: a", "watched: b"],
    ["optimised: sum", "part: a", "part: b"],
  ]
  true, latent = drawn[0].axes[0].lines
  assert points(true) == [(0, 2.0), (9, 2.0)]
  assert points(latent) == [(0, 2.5), (9, 2.5)]
  _, bound = drawn[0].axes[1].lines
  assert points(bound) == [(9, 4.0)]


def test_calibration_shows_tenths_of_the_pairs(monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure))
  rng = np.random.default_rng(0)
  guess = rng.standard_normal(200)
  pairs = np.stack([guess, 2 * guess + 1], axis=1)  # in order, but not true
  plots.calibration(np.vstack([pairs, [[np.nan, 1]]]), "jpeg")
  [ax] = drawn[0].axes
  assert ax.get_title("left") == "jpeg: Spearman 1.00, 200 unseen samples"
  dots, means, *_, truth = ax.lines
  assert len(dots.get_xdata()) == 200
  x, y = np.sort(means.get_xdata()), np.sort(means.get_ydata())
  np.testing.assert_allclose(y, 2 * x + 1)
  assert len(x) == 10
  np.testing.assert_array_equal(truth.get_xdata(), truth.get_ydata())
  plots.calibration(np.stack([guess, np.ones(200)], axis=1), "jpeg")
  assert drawn[1].axes[0].get_title("left").startswith("jpeg: a constant, 200")
  with pytest.raises(ValueError, match="9 pairs show no calibration"):
    plots.calibration(pairs[:9], "jpeg")


def test_a_metric_that_is_nowhere_is_named():
  message = "no row has the metric 'vds' .* lrm_reward, true_reward, vsd"
  with pytest.raises(ValueError, match=message):
    plots.curves(ROWS, ["vsd", "vds"])


def test_mosaic_places_every_clip():
  clips = np.arange(2 * 3 * 2).reshape(2, 3, 2, 1, 1, 1).astype(np.uint8)
  clips = np.broadcast_to(clips, (2, 3, 2, 5, 4, 3))
  sheet = mosaic.mosaic(clips, scale=2)
  assert sheet.shape == (2, 2 * 10 + mosaic.GAP, 3 * 8 + 2 * mosaic.GAP, 3)
  for row in range(2):
    for column in range(3):
      top, left = row * (10 + mosaic.GAP), column * (8 + mosaic.GAP)
      cell = sheet[:, top : top + 10, left : left + 8]
      for frame in range(2):
        assert (cell[frame] == clips[row, column, frame, 0, 0]).all()


def test_mosaic_refuses_other_arrays():
  with pytest.raises(ValueError, match="give uint8"):
    mosaic.mosaic(np.zeros((2, 8, 32, 32, 3), np.uint8))
  with pytest.raises(ValueError, match="type float64 cannot"):
    mosaic.mosaic(np.zeros((1, 1, 2, 8, 8, 3)))


def test_contact_sheet_shows_first_and_last_frame():
  clips = np.zeros((1, 1, 9, 16, 16, 3), np.uint8)
  clips[..., 0, :, :, 0] = 255  # red first, green between, blue last
  clips[..., 1:8, :, :, 1] = 255
  clips[..., 8, :, :, 2] = 255
  png = plots.contact_sheet(clips, ["real"], ["a 3"], frames=3, scale=4)
  picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
  for channel in range(3):
    others = np.delete(picture, channel, axis=-1).max(-1)
    pure = (picture[..., channel] == 255) & (others == 0)
    assert pure.sum() == 64 * 64
  assert (picture[0, 0] == 255).all()


def test_names_must_fit_the_clips():
  clips = np.zeros((2, 1, 3, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match="1 names for rows and 1 for columns"):
    plots.contact_sheet(clips, ["one"], ["a 3"])
