"""Texts: where they come from, how they are divided, and what is said of those that cannot be read."""

import json

import pytest

from research.data.corpus import open_corpus
from research.errors import UserError


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content, "utf-8") if isinstance(content, str) else path.write_bytes(content)
  return path


def test_one_file_is_divided_along_its_length(tmp_path):
  text = "".join(f"{number:04}" for number in range(250))
  uri = f"text:{write(tmp_path / 'a.txt', text)}"
  documents = open_corpus(uri, validation_fraction=0.1, test_fraction=0.2).documents
  assert documents == {"train": (text[:700],), "validation": (text[700:800],), "test": (text[800:],)}
  assert open_corpus(uri, validation_fraction=0.0).documents == {"train": (text,)}


def test_many_files_are_divided_by_documents(tmp_path):
  for number in range(20):
    write(tmp_path / f"{number:02}" / "a.md", f"document {number}")
  write(tmp_path / "picture.png", b"\xff\xfe")
  corpora = [open_corpus(f"text:{tmp_path}", validation_fraction=0.25, split_seed=seed) for seed in (0, 0, 1)]
  first = corpora[0].documents
  assert len(first["validation"]) == 5
  assert sorted(first["train"] + first["validation"]) == sorted(f"document {number}" for number in range(20))
  assert corpora[0].fingerprint == corpora[1].fingerprint != corpora[2].fingerprint
  assert first["validation"] != corpora[2].documents["validation"]


@pytest.mark.parametrize("names", [("train.txt", "val.txt"), ("train/a.txt", "validation/b.txt")])
def test_a_folder_may_bring_its_splits(tmp_path, names):
  for name in names:
    write(tmp_path / name, name)
  assert open_corpus(f"text:{tmp_path}").documents == {"train": (names[0],), "validation": (names[1],)}


def test_json_lines(tmp_path):
  lines = [json.dumps({"text": f"text {number}", "body": "é\n"}) for number in range(10)]
  path = write(tmp_path / "a.jsonl", "\n".join([*lines, "", ""]))
  found = open_corpus(f"jsonl:{path}").documents
  assert (len(found["train"]), len(found["validation"])) == (9, 1)
  assert set(open_corpus(f"jsonl:{path}?field=body").documents["train"]) == {"é\n"}


def test_the_standard_library_is_text_enough_without_a_download():
  documents = open_corpus("python:stdlib").documents
  assert sum(map(len, documents["train"])) > 5_000_000
  assert not set(documents["train"]) & set(documents["validation"])
  assert any("import" in document for document in documents["validation"])


@pytest.mark.parametrize(
  ("name", "content", "uri", "message"),
  [
    ("a.txt", b"caf\xe9", "text:{}", r"a\.txt is not UTF-8 at byte 3"),
    ("a.txt", "", "text:{}", "holds no text"),
    ("a.txt", "ab", "text:{}", "has 2 characters, too few for a validation split"),
    ("a.jsonl", '{"text": "x"}\n{"text": ', "jsonl:{}", r"line 2 is no JSON"),
    ("a.jsonl", '{"body": "x"}', "jsonl:{}", r"line 1 has no text 'text' \(body\); jsonl:FILE\?field=NAME names it"),
    ("a.jsonl", "[1]", "jsonl:{}", "line 1 has no text"),
    ("a.jsonl", '{"text": 5}', "jsonl:{}", "line 1: 'text' is no text but 5"),
    ("a.jsonl", '{"text": "x\\ud800y"}', "jsonl:{}", "line 1 has half of a surrogate pair .* at character 1; it is no"),
    ("a.jsonl", '{"text": "x"}', "jsonl:{}?column=a", r"option 'column=a'; jsonl: knows \?field=NAME"),
    ("a.txt", "abc", "txt:{}", r"is no text \(did you mean text\?\)"),
    ("a.txt", "abc", "text:{}x", "no file or folder"),
    ("b/a.png", "abc", "text:{}/..", r"has no files \*\.txt"),
    ("a.txt", "abc", "python:lib", "no python:lib; python:stdlib"),
  ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, uri, message):
  path = write(tmp_path / name, content)
  with pytest.raises(UserError, match=message) as error:
    open_corpus(uri.format(path if not uri.endswith("/..") else path.parent).removesuffix("/.."))
  assert "\n" not in str(error.value)
