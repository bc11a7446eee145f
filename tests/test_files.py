"""Files that appear whole or not at all."""

import pytest

from dollar_jax.files import write_text, written_whole


def test_a_file_is_there_once_it_is_whole(tmp_path):
  file = tmp_path / "new" / "a.txt"
  write_text(file, "å")
  assert file.read_bytes() == "å".encode()
  with written_whole(file, ".mp4") as part:
    assert part.parent == file.parent
    assert part.name.startswith(".")
    assert part.suffix == ".mp4"
    part.write_text("b")
    assert file.read_text("utf-8") == "å"
  assert file.read_text() == "b"
  assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_leaves_what_was_there(tmp_path, error):
  file = tmp_path / "a.txt"
  file.write_text("old")

  def write():
    with written_whole(file) as part:
      part.write_text("ne")
      raise error

  with pytest.raises(error):
    write()
  assert file.read_text() == "old"
  assert list(tmp_path.iterdir()) == [file]
