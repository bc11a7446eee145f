"""Lists of captioned files: read, fingerprinted and sifted."""

import hashlib
import json

import pytest

from dollar_jax.data import sources
from dollar_jax.data.sources import Skipped, fingerprint, read_sources, sift


def write_list(folder, rows):
  lines = [
    json.dumps(dict(zip(("file_name", "text"), r, strict=True))) for r in rows
  ]
  (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")


def test_the_two_kinds_of_list_say_the_same(tmp_path):
  rows = [("b/ü.mp4", 'a "quoted", text'), ("a.mp4", "two\nlines")]
  write_list(tmp_path, rows)
  found = read_sources(tmp_path)
  assert [(s.file_name, s.text) for s in found] == rows
  assert found[0].path == tmp_path / "b" / "ü.mp4"
  table = tmp_path / "list.csv"
  table.write_text(
    "\ufefftext,file_name,length\n"
    '"a ""quoted"", text",b/ü.mp4,3\n"two\nlines",a.mp4,4\n',
    encoding="utf-8",
  )
  assert read_sources(table) == found
  (tmp_path / "metadata.jsonl").unlink()
  table.rename(tmp_path / "metadata.csv")
  assert read_sources(tmp_path) == found


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("metadata.jsonl", "", "lists no video"),
    ("metadata.jsonl", '\n{"file_name": "a"}', "line 2 of .* is not underst"),
    ("metadata.jsonl", '{"file_name": 1, "text": "b"}', "line 1 of .* is not"),
    ("metadata.jsonl", "[1]", "line 1 of .* is not understood"),
    ("metadata.jsonl", '{"file_name": "a", "text', "line 1 of .* is not under"),
    ("metadata.jsonl", "[" * 10**6, "line 1 of .* is not understood"),
    ("metadata.jsonl", '{"file_name": null, "text": "b"}', "line 1 of .* is"),
    ("metadata.csv", "file,text\na,b\n", "has no column 'file_name'; its fir"),
    ("metadata.csv", "file_name,text\na\n", "line 2 of .* has fewer columns"),
    ("metadata.csv", "file_name,text\n", "lists no video"),
    ("other.json", "{}", "holds neither metadata.jsonl nor metadata.csv"),
  ],
)
def test_lists_that_are_none(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    read_sources(tmp_path)


def test_a_list_in_another_encoding(tmp_path):
  (tmp_path / "metadata.jsonl").write_bytes("ü".encode("latin-1"))
  with pytest.raises(ValueError, match=r"metadata.jsonl is no UTF-8 text"):
    read_sources(tmp_path)


def test_what_is_of_no_use_is_told_apart(tmp_path):
  contents = {"a": b"1", "same": b"1", "b": b"2", "empty": b"", "mute": b"3"}
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  (tmp_path / "folder").mkdir()
  names = ["a", "same", "b", "empty", "mute", "gone", "folder", "b"]
  write_list(tmp_path, [(n, " " if n == "mute" else f"a {n}") for n in names])
  found = read_sources(tmp_path)
  kept, skipped = sift(found, list(map(fingerprint, found)))
  assert [(s.file_name, h) for s, h in kept] == [
    (name, hashlib.sha256(contents[name]).hexdigest()) for name in ("a", "b")
  ]
  assert skipped == [
    Skipped("same", "it has the same content as a"),
    Skipped("empty", "the file is empty"),
    Skipped("mute", "its caption is empty"),
    Skipped("gone", "there is no such file"),
    Skipped("folder", "there is no such file"),
    Skipped("b", "it has the same content as b"),
  ]


def test_a_caption_of_a_megabyte_is_told_of(tmp_path):
  (tmp_path / "a").write_bytes(b"1")
  write_list(tmp_path, [("a", "word " * 200_000)])
  found = read_sources(tmp_path)
  kept, [skipped] = sift(found, [fingerprint(one) for one in found])
  assert not kept
  assert skipped.reason == (
    "its caption has 1,000,000 characters, more than 10,000"
  )


def test_videos_without_a_caption_are_seen(tmp_path):
  (tmp_path / "deep").mkdir()
  for name in ("deep/x.MP4", "y.webm", "a.mp4", ".hidden.mp4", "notes.txt"):
    (tmp_path / name).touch()
  write_list(tmp_path, [("./a.mp4", "a")])
  found = read_sources(tmp_path)
  assert sources.unlisted(tmp_path, found) == ["deep/x.MP4", "y.webm"]
  assert sources.unlisted(tmp_path / "metadata.jsonl", found) == []


def test_prompts_are_lines(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("a cat \n\n a dog\n")
  assert sources.read_prompts(file) == ["a cat", "a dog"]
  file.write_text("\n \n")
  with pytest.raises(ValueError, match="holds no prompt; write one a line"):
    sources.read_prompts(file)
  with pytest.raises(ValueError, match="give a file with one prompt a line"):
    sources.read_prompts(tmp_path)
