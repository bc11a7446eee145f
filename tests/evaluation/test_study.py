"""What votes say, by hand and by published examples, and the page."""

import base64
import html.parser
import json
import re
from pathlib import Path

import pytest

from dollar_jax.evaluation import study, study_page
from dollar_jax.evaluation.study_page import Pair
from dollar_jax.evaluation.votes import QUESTIONS, Vote


def _vote(choice, rater="r", question="quality", prompt="p", clip="0"):
  a, b = Path("one") / f"{clip}.mp4", Path("two") / f"{clip}.mp4"
  return Vote(rater, question, prompt, a, b, choice)


def test_krippendorffs_own_example():
  # four observers, twelve units, "." where one did not look: alpha is 0.743
  rows = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
  ]
  table = zip(*(row.split() for row in rows), strict=True)
  units = [[value for value in unit if value != "."] for unit in table]
  _, alpha = study.krippendorff(units)
  assert alpha == pytest.approx(0.743, abs=5e-4)


def test_agreement_at_its_ends():
  assert study.krippendorff([["a", "a"], ["b", "b"]]) == (1.0, 1.0)
  share, alpha = study.krippendorff([["a", "b"], ["b", "a"]])
  assert share == 0
  assert alpha == pytest.approx(-0.5)  # worse than chance
  assert study.krippendorff([["a"], ["b"]]) == (None, None)
  assert study.krippendorff([["a", "a"]]) == (1.0, None)


def test_a_tally_is_that_of_a_coin():
  votes = [_vote("b")] * 8 + [_vote("a")] * 2 + [_vote("tie")] * 5
  row = study.tally(votes)
  assert (row["votes"], row["a"], row["b"], row["ties"]) == (15, 2, 8, 5)
  assert row["win_rate_b"] == 0.8
  # Wilson's interval of 8 of 10, and 2 (1 + 10 + 45) / 1024
  assert row["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
  assert row["p_value"] == pytest.approx(112 / 1024)
  nothing = study.tally([_vote("tie")])
  assert nothing["win_rate_b"] is nothing["interval"] is None


def test_everything_together():
  votes = [
    _vote("a", "ann"),
    _vote("a", "ben"),
    _vote("b", "ann", "motion"),
    _vote("tie", "ann", prompt="q", clip="1"),
  ]
  found = study.summarise(votes)
  assert (found["raters"], found["pairs"]) == (2, 2)
  assert list(found["questions"]) == ["quality", "motion", "overall"]
  assert found["questions"]["overall"]["votes"] == 4
  agree = found["questions"]["quality"]["agreement"]
  assert (agree["answered_twice"], agree["share"]) == (1, 1.0)
  assert found["prompts"]["p"]["quality"]["win_rate_b"] == 0.0
  assert found["prompts"]["q"]["quality"]["ties"] == 1
  json.dumps(found)


def test_the_last_word_counts():
  votes = [_vote("a", "ann"), _vote("b", "ben"), _vote("b", "ann")]
  kept, replaced = study.last_words(votes)
  assert [vote.choice for vote in kept] == ["b", "b"]
  assert replaced == 1


def test_votes_of_two_studies_are_refused():
  other = Vote("r", "quality", "p", Path("two/0.mp4"), Path("one/0.mp4"), "a")
  with pytest.raises(ValueError, match="of different studies: some compare"):
    study.last_words([_vote("a"), other])


NASTY = 'a </script><b onclick="x">"&\u2028 <!-- cat'
PAIRS = [
  Pair(
    f"prompt {i}" if i else NASTY,
    f"{i}-a.mp4",
    f"{i}-b.mp4",
    (f"A{i}".encode(), f"B{i}".encode()),
  )
  for i in range(12)
]
FOLDERS = ("runs/one", "runs/two")


def _page(questions=QUESTIONS, seed=0):
  return study_page.study_page(PAIRS, FOLDERS, questions, seed)


def _study(page):
  match = re.search(r'id="study">(.*?)</script>', page, re.S)
  return json.loads(match[1])


def test_the_page_shows_every_pair_once_and_turns_half():
  shown = _study(_page())["pairs"]
  clips = [
    [base64.b64decode(pair[side]).decode() for side in ("left", "right")]
    for pair in shown
  ]
  assert sorted(sorted(pair) for pair in clips) == sorted(
    [f"A{i}", f"B{i}"] for i in range(12)
  )
  turned = sum(left.startswith("B") for left, _ in clips)
  assert turned == 6
  assert [pair["prompt"] for pair in shown] != [pair.prompt for pair in PAIRS]
  assert _page() == _page() != _page(seed=1)


def test_a_single_pair_is_turned_by_some_seeds():
  pages = [
    study_page.study_page(PAIRS[:1], FOLDERS, QUESTIONS, seed)
    for seed in range(10)
  ]
  left = {_study(page)["pairs"][0]["left"] for page in pages}
  assert left == {base64.b64encode(name).decode() for name in (b"A0", b"B0")}


def test_the_page_gives_nothing_away_and_fetches_nothing():
  page = _page()
  for word in (*FOLDERS, "-a.mp4", "-b.mp4", 'turned":'):
    assert word not in page
  assert not re.search(r"https?://", page)
  assert "default-src 'none'" in page
  assert "connect-src" not in page

  class Tags(html.parser.HTMLParser):
    seen = []

    def handle_starttag(self, tag, attrs):
      self.seen.append(tag)

  parser = Tags()
  parser.feed(page)
  assert parser.seen.count("script") == 2
  assert "b" not in parser.seen  # what the prompt would have added
  assert NASTY in [pair["prompt"] for pair in _study(page)["pairs"]]


def test_a_page_too_large_says_how_many_pairs_fit():
  pairs = [Pair("p", "a", "b", (bytes(4 * 10**6),) * 2)] * 4
  with pytest.raises(ValueError, match=r"has 43 MB, more than 20; .*--pairs=1"):
    study_page.study_page(pairs, FOLDERS, QUESTIONS, 0)
