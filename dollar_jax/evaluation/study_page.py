"""The page on which people compare clips: one file that needs no server.

Which clip is whose cannot be seen; who reads the source of the page can find
out. What was answered stays in the browser until it is saved as a file of
votes.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST = 20 * 10**6
"""Bytes of a page; more is slow to open and hard to send."""

ASKED = {
  "quality": "Which one looks better?",
  "motion": "Which one moves better?",
  "text": "Which one shows better what the words say?",
}


@dataclass(frozen=True)
class Pair:
  """Two clips of a prompt.

  Attributes:
    prompt: of both.
    a: file name of the one in the first folder.
    b: file name of the one in the second.
    clips: both files' contents, mp4.
  """

  prompt: str
  a: str
  b: str
  clips: tuple[bytes, bytes]


def study_page(
  pairs: Sequence[Pair],
  folders: tuple[str, str],
  questions: Sequence[str],
  seed: int,
) -> str:
  """Makes the page.

  Args:
    pairs: in any order; they are shuffled, and left and right drawn.
    folders: that of all a and that of all b, for the votes.
    questions: of `ASKED`.
    seed: of the order.

  Raises:
    ValueError: if the page would be too large.
  """
  rng = np.random.default_rng(seed)
  order = [pairs[i] for i in rng.permutation(len(pairs))]
  # half of them, so that no folder keeps to one side
  extra = rng.integers(2)
  turned = [bool((n + extra) % 2) for n in rng.permutation(len(pairs))]
  shown, key = [], []
  for pair, turn in zip(order, turned, strict=True):
    left, right = reversed(pair.clips) if turn else pair.clips
    clips = {"left": _text(left), "right": _text(right)}
    shown.append({"prompt": pair.prompt, **clips})
    key.append({"a": pair.a, "b": pair.b, "turned": turn})
  secret = {"a": folders[0], "b": folders[1], "pairs": key}
  content = {
    "questions": [{"name": name, "text": ASKED[name]} for name in questions],
    "pairs": shown,
    "key": _text(json.dumps(secret).encode()),
  }
  digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
  text = json.dumps(content | {"id": digest[:12]})
  # nothing in a prompt may end the element that holds it
  text = text.replace("<", "\\u003c")
  page = _PAGE.format(style=_STYLE, script=SCRIPT, study=text)
  size = len(page.encode())
  if size > LARGEST:
    fits = len(pairs) * LARGEST // size
    raise ValueError(
      f"the page of {len(pairs)} pairs has {size / 1e6:.0f} MB, more than "
      f"{LARGEST / 1e6:.0f}; take fewer, such as --pairs={max(fits, 1)}, or "
      "smaller clips"
    )
  return page


def _text(data: bytes) -> str:
  return base64.b64encode(data).decode()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src blob:">
<title>Which one is better?</title>
<style>{style}</style>
</head>
<body>
<main>
<p id="progress" role="status"></p>
<h1 id="question">This page needs JavaScript.</h1>
<p id="prompt"></p>
<div id="clips">
<video id="left" muted loop playsinline aria-label="left clip"></video>
<video id="right" muted loop playsinline aria-label="right clip"></video>
</div>
<div id="answers">
<button data-side="left">Left <kbd>←</kbd></button>
<button data-side="tie">No difference <kbd>↓</kbd></button>
<button data-side="right">Right <kbd>→</kbd></button>
</div>
<p><button id="back">Back <kbd>⌫</kbd></button></p>
<form id="save">
<label>Your name, or any word <input id="rater" required maxlength="60"></label>
<button>Save the votes</button>
</form>
<p id="note">Your answers stay in this browser until you save them.</p>
</main>
<script type="application/json" id="study">{study}</script>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --paper: #fff; --ink: #1d1f23; --soft: #656a73; --accent: #2563c9; }
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131518; --ink: #e7e9ec; --soft: #9aa1ab; --accent: #7fb0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 70rem; text-align: center;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.5rem; margin: .2rem 0; }
#progress, #note { color: var(--soft); margin: 0; }
#prompt { margin: .4rem auto 1rem; max-width: 48rem; overflow-wrap: anywhere; }
#clips { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
video {
  width: 100%; max-height: 60vh; object-fit: contain; background: #000;
  image-rendering: pixelated;
}
#answers {
  display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem;
  margin: 1rem 0;
}
button, input {
  font: inherit; color: inherit; background: none; padding: .7rem 1rem;
  border: 1px solid var(--soft); border-radius: .5rem; min-height: 3rem;
}
button { cursor: pointer; }
button:focus-visible, input:focus-visible { outline: 3px solid var(--accent); }
button[aria-pressed="true"] { border-color: var(--accent); }
kbd { color: var(--soft); font: inherit; }
[hidden] { display: none; }
@media (hover: none) { kbd { display: none; } }
"""

# What does not touch the page comes first, so that it can be run without one.
SCRIPT = """
"use strict";
function stepsOf(study) {
  return study.pairs.flatMap((_, pair) =>
    study.questions.map(question => ({pair, question: question.name})));
}
function votesOf(study, answers, rater) {
  const bytes = Uint8Array.from(atob(study.key), c => c.charCodeAt(0));
  const key = JSON.parse(new TextDecoder().decode(bytes));
  const votes = [];
  for (const {pair, question} of stepsOf(study)) {
    const side = answers[pair + ":" + question];
    if (!side) continue;
    const {a, b, turned} = key.pairs[pair];
    const choice = side == "tie" ? "tie" :
      (side == "left") != turned ? "a" : "b";
    votes.push({question, prompt: study.pairs[pair].prompt, a, b, choice});
  }
  return {rater, a: key.a, b: key.b, votes};
}
function start() {
  const at = id => document.getElementById(id);
  const study = JSON.parse(at("study").textContent);
  const steps = stepsOf(study), place = "dollar-study-" + study.id;
  let answers = {};
  try { answers = JSON.parse(localStorage.getItem(place)) || {}; } catch {}
  const answered = step => answers[step.pair + ":" + step.question];
  let now = steps.findIndex(step => !answered(step));
  if (now < 0) now = steps.length;
  let shown = -1, urls = [];
  function play(pair) {
    if (pair == shown) return;
    shown = pair;
    urls.forEach(url => URL.revokeObjectURL(url));
    urls = ["left", "right"].map(side => {
      const data = atob(study.pairs[pair][side]);
      const bytes = Uint8Array.from(data, c => c.charCodeAt(0));
      const url = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}));
      at(side).src = url;
      return url;
    });
    const both = [at("left"), at("right")];
    Promise.all(both.map(video => new Promise(done => {
      video.oncanplaythrough = done;
    }))).then(() => both.forEach(video => {
      video.currentTime = 0;
      video.play().catch(() => {});
    }));
  }
  at("left").ontimeupdate = () => {
    const time = at("left").currentTime;
    if (Math.abs(time - at("right").currentTime) > 0.15)
      at("right").currentTime = time;
  };
  function show() {
    const over = now >= steps.length;
    for (const id of ["clips", "answers", "prompt"]) at(id).hidden = over;
    at("back").disabled = now == 0;
    at("progress").textContent = over
      ? steps.length + " answers" : (now + 1) + " of " + steps.length;
    if (over) {
      at("question").textContent = "Thank you. Please save your votes.";
      at("rater").focus();
      return;
    }
    const {pair, question} = steps[now];
    at("question").textContent =
      study.questions.find(q => q.name == question).text;
    at("prompt").textContent = study.pairs[pair].prompt;
    for (const button of document.querySelectorAll("[data-side]")) {
      const chosen = button.dataset.side == answered(steps[now]);
      button.setAttribute("aria-pressed", chosen);
    }
    play(pair);
  }
  function answer(side) {
    if (now >= steps.length) return;
    const {pair, question} = steps[now++];
    answers[pair + ":" + question] = side;
    try { localStorage.setItem(place, JSON.stringify(answers)); } catch {
      at("note").textContent =
        "This browser keeps nothing: save before you close the page.";
    }
    show();
  }
  function back() {
    if (now > 0) now--;
    show();
  }
  for (const button of document.querySelectorAll("[data-side]"))
    button.onclick = () => answer(button.dataset.side);
  at("back").onclick = back;
  document.onkeydown = event => {
    if (event.target == at("rater") || event.repeat) return;
    const side = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie"};
    if (side[event.key]) answer(side[event.key]);
    else if (event.key == "Backspace") back();
    else return;
    event.preventDefault();
  };
  at("save").onsubmit = event => {
    event.preventDefault();
    const rater = at("rater").value.trim();
    const text = JSON.stringify(votesOf(study, answers, rater), null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text]));
    link.download = "votes-" + rater.replace(/[^A-Za-z0-9]+/g, "-") + ".json";
    link.click();
  };
  show();
}
if (typeof document != "undefined") start();
"""
