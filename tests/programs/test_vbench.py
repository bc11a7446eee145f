"""`dollar vbench` reads what VBench writes, and says what it cannot read."""

import json

import pytest

from dollar_jax import cli
from dollar_jax.evaluation.vbench_published import DIMENSIONS


@pytest.fixture
def vbench(capsys):
  def run(*args):
    code = cli.main(["vbench", *map(str, args)])
    return code, *capsys.readouterr()

  return run


def _teacher(unit=1.0):
  return {
    name.replace(" ", "_"): unit * row[0] for name, row in DIMENSIONS.items()
  }


def test_the_papers_teacher_from_the_packages_own_files(vbench, tmp_path):
  # one file a dimension, fractions, and a row for each video
  for name, value in _teacher(0.01).items():
    content = {name: [value, [{"video_path": "x.mp4", "video_results": value}]]}
    file = tmp_path / f"results_{name}_eval_results.json"
    file.write_text(json.dumps(content))
  (tmp_path / "results_full_info.json").write_text("[]")  # it writes those too
  out = tmp_path / "out" / "vbench.json"
  code, text, _ = vbench(f"--results={tmp_path}", f"--out={out}")
  assert code == 0
  rows = {" ".join(line.split()) for line in text.splitlines()}
  assert "this 81.89 73.71 80.25" in rows
  assert "dynamic degree 99.44 99.44 75.83 +0.00" in rows
  assert "DOLLAR, HPSv2, 4 steps - - 82.57 arXiv 2412.15689" in rows
  written = json.loads(out.read_text())
  assert written["total"] == pytest.approx(80.25, abs=0.01)
  assert written["dimensions"]["color"] == pytest.approx(0.77)


def test_tables_of_json_and_csv_are_taken_together(vbench, tmp_path):
  rows = list(_teacher().items())
  table, sheet = tmp_path / "some.json", tmp_path / "rest.csv"
  table.write_text(json.dumps(dict(rows[:9])))
  lines = ["dimension,value", *(f"{n},{v}" for n, v in rows[9:])]
  sheet.write_text("\n".join(lines))
  code, text, _ = vbench(f"--results={table},{sheet}")
  assert code == 0
  assert "80.25" in text
  sheet.write_text("\n".join(lines[1:]))  # names of columns are not needed
  assert vbench(f"--results={table},{sheet}")[0] == 0


@pytest.mark.parametrize(
  "name, text, sentence",
  [
    ("r.json", None, "cannot be read (No such file or directory)"),
    ("r.json", "[1]", "is no JSON object"),
    ("r.json", '{"color": "high"}', "color in"),
    ("r.json", '{"color": true}', "it must be a number"),
    ("r.csv", "color,high\nscene,low", "scene in"),
    ("r.csv", "color;0.7", "it must be a number"),
    ("r.json", '{"color": 0.7}', "missing: subject consistency"),
    ("r.json", '{"color": 0.7, "Color": 0.7}', "color stands in"),
  ],
)
def test_what_cannot_be_read_is_one_sentence(
  vbench, tmp_path, name, text, sentence
):
  file = tmp_path / name
  if text is not None:
    file.write_text(text)
  out = tmp_path / "out.json"
  code, _, err = vbench(f"--results={file}", f"--out={out}")
  assert code == 1
  assert sentence in err.strip().splitlines()[-1]
  assert not out.exists()


def test_an_empty_folder_is_refused(vbench, tmp_path):
  assert "holds no *eval_results.json" in vbench(f"--results={tmp_path}")[2]
