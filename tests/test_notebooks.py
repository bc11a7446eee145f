"""The notebooks: paired, executed from top to bottom, and still running."""

import pathlib
import re
import shutil

import jupytext
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
NAMES = ("distill_digits", "latent_reward", "port_to_pytorch")
MOST_BYTES = 3 * 10**6


def read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_these_are_all():
  found = {path.stem for path in FOLDER.iterdir() if path.is_file()}
  assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_halves_say_the_same(name):
  script = jupytext.read(FOLDER / f"{name}.py")
  pairs = [
    [(cell.cell_type, cell.source) for cell in half.cells]
    for half in (script, read(name))
  ]
  assert pairs[0] == pairs[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_comes_of_one_run_without_faults(name):
  cells = code(read(name))
  counts = [cell.execution_count for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  outputs = [out for cell in cells for out in cell.outputs]
  kinds = {out.output_type for out in outputs}
  assert kinds <= {"stream", "display_data", "execute_result"}
  assert any("image/png" in out.get("data", {}) for out in outputs)
  streams = [out for out in outputs if out.output_type == "stream"]
  assert {out.name for out in streams} <= {"stdout"}
  text = "".join(out.text for out in streams)
  assert not re.search(r"Warning|Traceback|/work/|/home/|/tmp/|/root/", text)
  assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES


@pytest.mark.slow  # minutes each
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
  from nbclient import NotebookClient

  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  shutil.copytree(FOLDER, tmp_path / "notebooks")
  shutil.copytree(FOLDER.parent / "configs", tmp_path / "configs")
  notebook = jupytext.read(tmp_path / "notebooks" / f"{name}.py")
  metadata = {"metadata": {"path": tmp_path / "notebooks"}}
  NotebookClient(notebook, timeout=900, resources=metadata).execute()
  assert all(cell.execution_count for cell in code(notebook))
