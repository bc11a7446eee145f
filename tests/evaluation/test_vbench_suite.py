"""VBench's prompts, and what is no list of them."""

import json

import pytest

from dollar_jax.evaluation.vbench_suite import read_suite


def test_a_text_has_a_prompt_a_line(tmp_path):
  file = tmp_path / "color.txt"
  file.write_text("\ufeffa red cat\n\n a blue dog \na red cat\n")
  assert read_suite(file) == {"a red cat": 5, "a blue dog": 5}
  flickering = tmp_path / "temporal_flickering.txt"
  flickering.write_text("a cat, frozen in time\n")
  assert read_suite(flickering) == {"a cat, frozen in time": 25}


def test_a_prompt_of_two_dimensions_takes_the_larger_number(tmp_path):
  rows = [
    {"prompt_en": "a bar", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a bar", "dimension": ["scene"], "auxiliary_info": {}},
  ]
  for order in (rows, rows[::-1]):
    file = tmp_path / "all.json"
    file.write_text(json.dumps(order))
    assert read_suite(file) == {"a bar": 25}


@pytest.mark.parametrize(
  "content, sentence",
  [
    (b"[]", "holds no prompt"),
    (b"{", "no list of objects"),
    (b"[1]", "no list of objects"),
    (b'[{"prompt_en": 1, "dimension": []}]', "no list of objects"),
    (b'[{"prompt_en": "a", "dimension": "scene"}]', "no list of objects"),
    (b'{"prompt_en": "a", "dimension": []}', "no list of objects"),
    (b"[" * 100_000, "no list of objects"),
    (b"\xff\xfe", "it is not text"),
    (None, "No such file"),
  ],
)
def test_what_is_no_suite_is_refused(tmp_path, content, sentence):
  file = tmp_path / "suite.json"
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(ValueError, match=sentence):
    read_suite(file)
