"""The page of a study and that of a report, opened in Chromium."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from playwright import sync_api

from dollar_jax import cli
from dollar_jax.data import videos
from dollar_jax.evaluation import plots
from dollar_jax.evaluation.report import (
  ClipGrid,
  Figure,
  Highlights,
  Section,
  Table,
  write_report,
)
from dollar_jax.evaluation.votes import Vote, read_votes

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
FOLDERS = ("alpha", "beta")
OPTIONS = (
  "no-sandbox disable-gpu disable-quic no-first-run disable-component-update "
  "disable-background-networking disable-sync"
)


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=[f"--{name}" for name in OPTIONS.split()]
    )
    yield browser
    browser.close()


@pytest.fixture
def visit(browser):
  """Opens a file; no page may complain or ask for what is not in it."""
  faults, contexts = [], []

  def request(request):
    if not request.url.startswith(("file:", "data:", "blob:")):
      faults.append(request.url)

  def console(message):
    if message.type == "error":
      faults.append(message.text)

  def visit(file, **settings):
    contexts.append(browser.new_context(**settings))
    page = contexts[-1].new_page()
    page.on("console", console)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", request)
    page.goto(file.as_uri())
    return page

  yield visit
  for context in contexts:
    context.close()
  assert faults == []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """Page of four pairs; a clip's grey tells its folder."""
  root = tmp_path_factory.mktemp("study")
  for name, grey in zip(FOLDERS, (60, 200), strict=True):
    for prompt in "wxyz":
      file = root / name / videos.video_name(prompt, 0)
      file.parent.mkdir(exist_ok=True)
      videos.write_video(file, np.full((4, 16, 16, 3), grey, np.uint8), 8)
  a, b = (root / name for name in FOLDERS)
  flags = [f"--a={a}", f"--b={b}", f"--out={root}"]
  assert cli.main(["study", *flags, "--questions=quality,motion"]) == 0
  return root / "index.html"


def sides(file):
  """Prompts, and the folders of the clips left and right, of their bytes."""
  text = re.search(r'id="study">(.*?)</script>', file.read_text(), re.S)[1]
  of = {
    base64.b64encode(clip.read_bytes()).decode(): clip.parent.name
    for clip in file.parent.glob("*/*.mp4")
  }
  return [
    {side: of[pair[side]] for side in ("left", "right")}
    | {"prompt": pair["prompt"]}
    for pair in json.loads(text)["pairs"]
  ]


def test_keys_become_votes_of_the_folders(visit, study, tmp_path):
  page = visit(study)
  shown = sides(study)
  assert sorted(pair["left"] for pair in shown) == [
    *["alpha"] * 2,
    *["beta"] * 2,
  ]
  assert page.inner_text("#question") == "Which one looks better?"
  arrow = {"left": "ArrowLeft", "right": "ArrowRight"}
  better = [
    next(arrow[side] for side in arrow if pair[side] == "beta")
    for pair in shown
    for _ in range(2)
  ]
  other = {"ArrowLeft": "ArrowRight", "ArrowRight": "ArrowLeft"}
  for key in ("ArrowDown", *better[1:4]):
    page.keyboard.press(key)
  assert page.inner_text("#progress") == "5 of 8"
  page.reload()
  assert page.inner_text("#progress") == "5 of 8"
  page.keyboard.press("Backspace")
  assert page.inner_text("#progress") == "4 of 8"
  for key in (other[better[3]], *better[4:]):
    page.keyboard.press(key)
  assert page.inner_text("#progress") == "8 answers"
  page.fill("#rater", "Ann B.")
  with page.expect_download() as saving:
    page.keyboard.press("Enter")
  assert saving.value.suggested_filename == "votes-Ann-B-.json"
  votes, result = tmp_path / "votes.json", tmp_path / "result.json"
  saving.value.save_as(votes)
  found = read_votes([votes])
  choices = ["tie", "b", "b", "a", *["b"] * 4]
  assert found == [
    Vote(
      "Ann B.",
      ("quality", "motion")[i % 2],
      prompt := shown[i // 2]["prompt"],
      *(study.parent / name / f"{prompt}-0.mp4" for name in FOLDERS),
      choice,
    )
    for i, choice in enumerate(choices)
  ]
  assert cli.main(["study", f"--votes={votes}", f"--out={result}"]) == 0
  found = json.loads(result.read_text())
  quality, motion = (found["questions"][n] for n in ("quality", "motion"))
  counts = [[q[n] for n in ("a", "b", "ties")] for q in (quality, motion)]
  assert counts == [[0, 3, 1], [1, 3, 0]]
  assert (quality["win_rate_b"], motion["win_rate_b"]) == (1.0, 0.75)
  assert found["a"] == str(study.parent / "alpha")


def test_what_is_seen_names_no_folder(visit, study):
  page = visit(study)
  # the page forbids eval, by which Playwright's own waiting goes
  for _ in range(200):
    if page.evaluate(DECODED):
      break
    page.wait_for_timeout(50)
  assert page.evaluate("document.getElementById('left').videoWidth") == 16
  for _ in range(9):
    seen = page.inner_text("body") + page.title()
    seen += page.evaluate(
      "[...document.querySelectorAll('body *')].flatMap(e => ['title',"
      "'aria-label', 'alt', 'src'].map(n => e.getAttribute(n))).join(' ')"
    )
    assert not re.search(r"alpha|beta|\.mp4", seen)
    page.keyboard.press("ArrowDown")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  file = tmp_path_factory.mktemp("report") / "report.html"
  clips = np.zeros((2, 3, 16, 16, 16, 3), np.uint8)
  for i in range(16):
    clips[:, :, i, :, i] = 255
  names, prompts = ["teacher", "student"], ["one", "two", "three"]
  rows = [{"name": n, "steps": 4, "frechet": 2.5} for n in names]
  losses = [{"step": i, "vsd": 1 / (i + 1)} for i in range(9)]
  blocks = [
    Highlights([("34×", "faster"), (0.875, "accuracy")]),
    Table(rows, note="Steps."),
    Figure(plots.curves(losses, ["vsd"]), "loss"),
    ClipGrid(clips, names, prompts, 8, "Clips."),
    ClipGrid(clips[:, :2], names, prompts[:2], 8),
  ]
  sections = [Section("Results", blocks)]
  write_report(file, "Title", sections, summary="All.", footer="End.")
  return file


LUMINANCES = """
() => [...document.querySelectorAll(
  "h1, p, th, td, dd, dt, figcaption, button")]
  .map(element => {
    let behind = element, colour;
    do {
      colour = behind ? getComputedStyle(behind).backgroundColor : "white";
      behind = behind.parentElement;
    } while (colour == "rgba(0, 0, 0, 0)");
    return [getComputedStyle(element).color, colour].map(text => {
      const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    });
  })
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_can_be_read(visit, report, scheme, width):
  viewport = {"width": width, "height": 800}
  page = visit(report, color_scheme=scheme, viewport=viewport)
  seen = page.evaluate("document.documentElement.scrollWidth")
  assert seen <= width
  pairs = np.array(page.evaluate(LUMINANCES))
  assert len(pairs) > 10
  contrast = (pairs.max(1) + 0.05) / (pairs.min(1) + 0.05)
  assert contrast.min() >= 4.5
  dark = pairs[:, 0] > pairs[:, 1]
  assert dark.all() if scheme == "dark" else not dark.any()


STATE = "[...document.querySelectorAll('video')].map(v => v.{})"
DECODED = STATE.format("readyState") + ".every(n => n > 1)"


def test_clips_stop_and_go_together(visit, report):
  page = visit(report)
  page.wait_for_function(DECODED)
  assert page.evaluate(STATE.format("videoWidth")) == [392, 260]
  button = page.locator("figcaption button").first
  button.click()
  assert page.evaluate(STATE.format("paused")) == [True, True]
  assert page.locator("figcaption button").all_inner_texts() == ["Play"] * 2
  button.click()
  page.wait_for_function(STATE.format("currentTime") + ".every(t => t > 0.5)")
  assert page.evaluate(STATE.format("paused")) == [False, False]
  one, other = page.evaluate(STATE.format("currentTime"))
  assert abs(one - other) <= 1 / 8


def test_who_wants_no_motion_starts_with_stills(visit, report):
  page = visit(report, reduced_motion="reduce")
  page.wait_for_function(DECODED)
  assert page.evaluate(STATE.format("paused")) == [True, True]
  assert page.locator("button").first.inner_text() == "Play"
