"""The report is one whole, safe file that shows what it was given."""

import base64
import html.parser
import io
import re

import av
import numpy as np
import pytest
from PIL import Image

from dollar_jax.evaluation import mosaic, plots
from dollar_jax.evaluation.report import (
  ClipGrid,
  Code,
  Figure,
  Highlights,
  Section,
  Table,
  Text,
  write_report,
)

EVIL = "<script>alert('&\"')</script>"
LOSSES = [{"step": i, "vsd": 1 / (i + 1), "cd": 0.5} for i in range(40)]
VOID = {"br", "img", "meta", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
  """Checks that tags nest, and collects them with their text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("script", "style"):
      self.text.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def moving():
  """Clips [2, 3, 8, 16, 16, 3]: a bar whose place tells row and column."""
  clips = np.zeros((2, 3, 8, 16, 16, 3), np.uint8)
  for row in range(2):
    for column in range(3):
      clips[
        row, column, :, 8 * row : 8 * row + 4, 5 * column : 5 * column + 4
      ] = 255
  clips[:, :, 4:] //= 2
  return clips


@pytest.fixture
def everything(moving):
  rows = [{"name": EVIL, "frechet": 2.5, "frechet_interval": [2.0, 3.0]}]
  return [
    Section(
      EVIL,
      [
        Text(f"{EVIL}\n\nsecond"),
        Code(EVIL),
        Highlights([("34×", EVIL), (0.875, "accuracy")]),
        Table(rows, note=EVIL),
        Figure(plots.curves(LOSSES, ["vsd", "cd"]), EVIL, EVIL),
        Figure(plots.curves(LOSSES, ["cd"]), "another"),
        ClipGrid(moving, [EVIL, "b"], ["x", EVIL, "z"], 8, EVIL),
      ],
    )
  ]


def written(path, *blocks):
  write_report(path, "Title", [Section("Part", blocks)])
  return path.read_text(encoding="utf-8")


def test_everything_is_escaped_and_nests(tmp_path, everything):
  path = tmp_path / "report.html"
  write_report(path, EVIL, everything, summary=EVIL, footer=EVIL)
  page = Page(path.read_text(encoding="utf-8"))
  assert len(page.all("script")) == 1
  # title, heading, summary, section, text, code, highlight, row, 3 notes, row
  # and column of the grid, footer
  assert "".join(page.text).count(EVIL) == 14
  assert EVIL in [svg.get("aria-label") for svg in page.all("svg")]


def test_nothing_is_fetched(tmp_path, everything):
  path = tmp_path / "report.html"
  write_report(path, "t", everything)
  text = path.read_text(encoding="utf-8")
  for _, attrs in Page(text).tags:
    for name in ("src", "href", "xlink:href", "poster", "action", "data"):
      if name in attrs:
        assert attrs[name].startswith(("data:", "#")), attrs[name][:80]
  assert "@import" not in text
  assert "@font-face" not in text
  assert not re.search(r"url\((?!#)", text)
  assert path.stat().st_size < 1e6


def test_ids_of_figures_do_not_clash(tmp_path, everything):
  path = tmp_path / "report.html"
  write_report(path, "t", everything)
  text = path.read_text(encoding="utf-8")
  svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
  assert len(svgs) == 2
  ids = [set(re.findall(r' id="(.*?)"', svg)) for svg in svgs]
  assert ids[0]
  assert not ids[0] & ids[1]
  for svg, own in zip(svgs, ids, strict=True):
    used = re.findall(r'(?:url\(#|href="#)(.*?)[)"]', svg)
    assert used
    assert set(used) <= own


def test_figures_take_the_ink_of_the_page(tmp_path):
  figure = Figure(plots.curves(LOSSES, ["vsd"]), "loss")
  svg = re.search(r"<svg.*</svg>", written(tmp_path / "r", figure), re.DOTALL)[
    0
  ]
  assert "currentColor" in svg
  assert "#000000" not in svg
  assert "#ffffff" not in svg
  assert plots.COLORS[0] in svg
  assert ">step</text>" in svg


def video_of(text):
  [video] = Page(text).all("video")
  kind, data = video["src"].split(";base64,")
  assert kind == "data:video/mp4"
  with av.open(io.BytesIO(base64.b64decode(data))) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    return video, np.stack(frames), float(stream.average_rate)


def test_a_clip_grid_is_one_video_of_all_clips(tmp_path, moving):
  grid = ClipGrid(moving, ["a", "b"], ["x", "y", "z"], fps=12)
  text = written(tmp_path / "r", grid)
  video, frames, fps = video_of(text)
  expected = mosaic.mosaic(moving, scale=8)
  assert frames.shape == expected.shape
  assert fps == 12
  assert np.abs(frames.astype(int) - expected).mean() < 4
  assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
  still = base64.b64decode(video["poster"].split(",")[1])
  np.testing.assert_array_equal(Image.open(io.BytesIO(still)), expected[4])
  words = "".join(Page(text).text)
  assert all(name in words for name in "abxyz")


def test_odd_sizes_are_padded_and_not_scaled():
  frames = np.zeros((3, 33, 31, 3), np.uint8)
  frames[:, :, ::2] = 255  # stripes that any scaling would blur
  kind, data = mosaic.encode(frames, 24)
  assert kind == "video/mp4"
  with av.open(io.BytesIO(data)) as container:
    decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
  assert np.shape(decoded) == (3, 34, 32, 3)
  error = np.abs(np.array(decoded, int)[:, :33, :31] - frames)
  assert error.mean() < 10


def test_without_h264_the_clips_are_an_animated_picture(
  tmp_path, moving, monkeypatch
):
  monkeypatch.setattr(mosaic, "_H264", "no such codec")
  text = written(tmp_path / "r", ClipGrid(moving, "ab", "xyz", fps=8))
  [image] = Page(text).all("img")
  kind, data = image["src"].split(";base64,")
  assert kind == "data:image/webp"
  picture = Image.open(io.BytesIO(base64.b64decode(data)))
  assert picture.n_frames == 2  # equal frames are merged, their time kept
  picture.seek(0)
  np.testing.assert_array_equal(
    np.asarray(picture.convert("RGB")), mosaic.mosaic(moving, scale=8)[0]
  )
  assert "<button" not in text


def cells(text):
  rows = re.findall(r"<tr>(.*?)</tr>", text)
  plain = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]
  return [[re.sub("<.*?>", "", cell) for cell in row] for row in plain]


def test_tables_show_numbers_with_intervals_and_even_decimals(tmp_path):
  rows = [
    {"name": "teacher", "accuracy": 1.0, "accuracy_interval": [0.97, 1.0]},
    {"name": "student", "accuracy": 0.8764, "accuracy_interval": [None, 0.9]},
    {"name": "none", "steps": 12345, "done": True, "loss": -0.00012},
  ]
  assert cells(written(tmp_path / "r", Table(rows))) == [
    ["name", "accuracy", "steps", "done", "loss"],
    ["teacher", "1.000 [0.970, 1.000]", "–", "–", "–"],
    ["student", "0.876 [–, 0.900]", "–", "–", "–"],
    ["none", "–", "12,345", "yes", "−1.2e−04"],
  ]


def test_a_large_number_does_not_cost_the_others_their_decimals(tmp_path):
  rows = [{"frechet": value} for value in (2.5, 3.25, 14.061)]
  shown = cells(written(tmp_path / "r", Table(rows)))
  assert shown == [["frechet"], ["2.50"], ["3.25"], ["14.06"]]


def test_tables_show_the_columns_asked_for(tmp_path):
  rows = [{"a": 1, "b": 25.25, "c": np.float32(3.5)}, {"b": np.inf}]
  table = Table(rows, columns={"c": "third", "b": "second"})
  assert cells(written(tmp_path / "r", table)) == [
    ["third", "second"],
    ["3.50", "25.2"],
    ["–", "∞"],
  ]


def test_a_report_that_fails_leaves_the_old_one(tmp_path, moving):
  path = tmp_path / "report.html"
  before = written(path, Text("old"))
  with pytest.raises(ValueError, match="3 for columns"):
    written(path, ClipGrid(moving[:, :2], "ab", "xyz", fps=8))
  assert path.read_text(encoding="utf-8") == before
  assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
