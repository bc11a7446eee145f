"""Files of votes, and what is no such file."""

import json
from pathlib import Path

import pytest

from dollar_jax.evaluation import votes

ROW = {
  "question": "motion",
  "prompt": "a cat",
  "a": "a cat-0.mp4",
  "b": "a cat-1.mp4",
  "choice": "b",
}


def _file(folder, name="v.json", rater="anna", rows=(ROW,), **more):
  content = {"rater": rater, "a": "one", "b": "/two", "votes": list(rows)}
  file = folder / name
  file.write_text(json.dumps(content | more))
  return file


def test_votes_are_read_in_order(tmp_path):
  first = _file(tmp_path)
  second = _file(tmp_path, "w.json", "ben", [{**ROW, "choice": "tie"}])
  found = votes.read_votes([first, second])
  assert [vote.rater for vote in found] == ["anna", "ben"]
  assert [vote.choice for vote in found] == ["b", "tie"]
  assert found[0].a == Path("one/a cat-0.mp4")
  assert found[0].b == Path("/two/a cat-1.mp4")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"question": "sound"}, "question in vote 1 of .* quality, motion, text"),
    ({"choice": "c"}, "choice in vote 1 .* 'c'; .* a, b, tie"),
    ({"a": "../secret.mp4"}, "must be a file's name"),
    ({"prompt": 3}, "must have question, prompt, a, b, choice"),
  ],
)
def test_a_vote_that_is_none_is_named(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    votes.read_votes([_file(tmp_path, rows=[ROW | change])])


def test_files_that_hold_no_votes_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no\.json \(No such file"):
    votes.read_votes([tmp_path / "no.json"])
  other = tmp_path / "other.json"
  for text in ("{", "[]", '{"rater": "x"}', "[" * 100_000):
    other.write_text(text)
    with pytest.raises(ValueError, match="is no file of votes"):
      votes.read_votes([other])
  other.write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match="it is not text"):
    votes.read_votes([other])
  with pytest.raises(ValueError, match="hold no vote"):
    votes.read_votes([_file(tmp_path, rows=[])])
  twice = _file(tmp_path)
  with pytest.raises(ValueError, match="comes twice"):
    votes.read_votes([twice, twice])
