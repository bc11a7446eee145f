"""`dollar study`: the page it writes, the votes it counts, what it refuses."""

import json

import numpy as np
import pytest

from dollar_jax import cli
from dollar_jax.data import videos


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two folders of three prompts, of which they share two."""
  made = {}
  for name, prompts in (("a", ("x", "y", "x")), ("b", ("x", "y", "z"))):
    made[name] = tmp_path_factory.mktemp(name)
    for i, prompt in enumerate(prompts):
      file = made[name] / videos.video_name(prompt, i)
      videos.write_video(file, np.zeros((2, 16, 16, 3), np.uint8), 8)
  return made


@pytest.fixture
def run(capsys):
  def run(*args):
    code = cli.main(["study", *map(str, args)])
    return code, *capsys.readouterr()

  return run


def test_a_page_of_what_both_have(folders, run, tmp_path):
  flags = [f"--{name}={folder}" for name, folder in folders.items()]
  code, out, _ = run(*flags, f"--out={tmp_path}", "--questions=motion")
  assert code == 0
  assert out == (
    f"{tmp_path / 'index.html'} asks 2 questions on 2 pairs; 2 clips have no "
    "counterpart\n"
  )
  page = (tmp_path / "index.html").read_text()
  assert "Which one moves better?" in page
  assert "Which one looks better?" not in page
  code, out, _ = run(*flags, f"--out={tmp_path}", "--pairs=1")
  assert out.startswith(f"{tmp_path / 'index.html'} asks 3 questions on 1 pair")


def _votes(folder, rater, choices):
  rows = [
    {"question": "quality", "prompt": "x", "a": "x.mp4", "b": f"{i}.mp4"}
    for i in range(len(choices))
  ]
  rows = [r | {"choice": c} for r, c in zip(rows, choices, strict=True)]
  file = folder / f"{rater}.json"
  content = {"rater": rater, "a": "one", "b": "two", "votes": rows}
  file.write_text(json.dumps(content))
  return file


def test_votes_are_counted(run, tmp_path):
  files = [
    _votes(tmp_path, "ann", ["b", "b", "b", "a"]),
    _votes(tmp_path, "ben", ["b", "b", "b", "tie"]),
  ]
  out_file = tmp_path / "out" / "study.json"
  names = ",".join(map(str, files))
  code, out, _ = run(f"--votes={names}", f"--out={out_file}")
  assert code == 0
  lines = out.splitlines()
  assert lines[:3] == ["a: one", "b: two", "2 raters, 4 pairs, 8 votes"]
  assert lines[4].split() == [
    *("quality", "1", "6", "1", "85.7%", "[48.7%,", "97.4%]", "0.125"),
    *("75.0%", "0.46"),
  ]
  result = json.loads(out_file.read_text())
  assert result["questions"]["overall"]["b"] == 6
  assert result["replaced"] == 0


@pytest.mark.parametrize(
  "flags, sentence",
  [
    ([], "nothing to do; give --a=DIR --b=DIR --out=DIR"),
    (["--a=A", "--votes=v.json"], "give one or the other"),
    (["--votes=no.json"], "votes cannot be read from no.json"),
    (["--a=A", "--b=A", "--out=O", "--questions=sound"], "has 'sound'"),
    (["--a=no", "--b=A", "--out=O"], "no holds no .mp4 file"),
    (["--a=A", "--b=C", "--out=O"], "no prompt has clips both in"),
  ],
)
def test_bad_input_is_one_sentence(
  folders, run, tmp_path, monkeypatch, flags, sentence
):
  monkeypatch.chdir(tmp_path)
  other = tmp_path / "c"
  other.mkdir()
  videos.write_video(other / "w-0.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
  places = {"A": folders["a"], "C": other, "O": tmp_path / "out"}
  flags = [
    f"{name}={places.get(value, value)}"
    for name, value in (flag.split("=") for flag in flags)
  ]
  code, _, err = run(*flags)
  assert code != 0
  assert sentence in err.strip().splitlines()[-1]
  assert not (tmp_path / "out").exists()
