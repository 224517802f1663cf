"""Texts with classes, from tables, lines, folders, TFDS and docstrings; vocabularies from training alone."""

import json

import numpy as np
import pytest

from research.data import tokenizers
from research.data.labelled_text import NO_TOKEN, open_labelled, without_labels
from research.errors import UserError

ROWS = [(f"the {'cat' if i % 3 else 'dog'} number {i}, sat", "cat" if i % 3 else "dog") for i in range(30)]


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content, "utf-8")
  return path


def csv_of(tmp_path, rows=ROWS, header="id,text,class"):
  lines = [f'{i},"{text}",{label}' for i, (text, label) in enumerate(rows)]
  return write(tmp_path / "a.csv", "\n".join([header, *lines]) + "\n")


def texts_of(splits, source):
  tokens_NL = source.column("tokens")
  return [splits.tokenizer.decode(row[row != NO_TOKEN].tolist()) for row in tokens_NL]


def test_a_table_becomes_words_and_labels(tmp_path):
  splits = open_labelled(f"csv:{csv_of(tmp_path)}", length=7, vocabulary=9)
  assert splits.train.schema.class_names == ("cat", "dog")
  assert (splits.train.size, splits.test.size) == (24, 6)
  assert splits.tokenizer.size == 9
  for source in (splits.train, splits.test):
    for text, label in zip(texts_of(splits, source), source.column("label"), strict=True):
      assert text.split()[1] == ("cat", "dog")[label]
      assert text.endswith(", sat")
  assert np.bincount(splits.test.column("label")).tolist() == [4, 2]


def test_the_vocabulary_is_trainings_commonest_words_alone(tmp_path):
  train = [(f"common word{i}", "ab"[i % 2]) for i in range(10)]
  test = [("common unseen unseen unseen", "a"), ("common unseen", "b")]
  for split, pairs in (("train", train), ("test", test)):
    for i, (text, label) in enumerate(pairs):
      write(tmp_path / "set" / split / label / f"{i}.txt", text)
  splits = open_labelled(f"folder:{tmp_path / 'set'}", length=4)
  assert splits.tokenizer.decode([1]) == "common"
  assert splits.tokenizer.size == 12
  assert splits.test.column("tokens").tolist() == [[1, 0, 0, 0], [1, 0, NO_TOKEN, NO_TOKEN]]


def test_lines_of_json_and_their_columns(tmp_path):
  lines = [json.dumps({"body": text, "kind": i % 2, "other": label}) for i, (text, label) in enumerate(ROWS)]
  path = write(tmp_path / "a.jsonl", "\n".join(lines))
  assert open_labelled(f"jsonl:{path}", length=3).train.schema.class_names == ("cat", "dog")
  named = open_labelled(f"jsonl:{path}", length=3, column="body", target="kind", tokenizer="byte")
  assert named.train.schema.class_names == ("0", "1")
  assert named.train.column("tokens")[0].tolist() == list(b"the")


def test_a_prepared_set_of_texts(tmp_path):
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  where = tmp_path / "news" / "1.0.0"
  where.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"])}
  )
  features.save_config(str(where))
  splits = []
  for split, size in (("train", 12), ("test", 4)):
    writer = ArrayRecordWriter(str(where / f"news-{split}.array_record-00000-of-00001"), "group_size:1")
    for i in range(size):
      writer.write(features.serialize_example({"text": f"{split} café {i}", "label": i % 2}))
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": [str(size)]})
  info = {"fileFormat": "array_record", "name": "news", "splits": splits, "version": "1.0.0"}
  (where / "dataset_info.json").write_text(json.dumps(info))
  found = open_labelled("tfds:news", length=3, data_dir=str(tmp_path))
  assert found.train.schema.class_names == ("bad", "good")
  assert texts_of(found, found.train)[3] == "train café 3"
  assert found.test.column("label").tolist() == [0, 1, 0, 1]


def test_fewer_labels_are_each_classes_share_and_the_vocabulary_stays(tmp_path):
  uri = f"csv:{csv_of(tmp_path)}"
  asked = ((0, 0), (12, 0), (12, 0), (12, 1))
  whole, few, same, other = (open_labelled(uri, length=7, labels=count, labels_seed=seed) for count, seed in asked)
  assert np.bincount(whole.train.column("label")).tolist() == [16, 8]
  assert np.bincount(few.train.column("label")).tolist() == [8, 4]
  assert few.test.size == whole.test.size
  assert tokenizers.digest(few.tokenizer) == tokenizers.digest(whole.tokenizer)
  assert few.fingerprint == same.fingerprint
  assert len({whole.fingerprint, few.fingerprint, other.fingerprint}) == 3
  rows = {tuple(row) for row in whole.train.column("tokens").tolist()}
  assert {tuple(row) for row in few.train.column("tokens").tolist()} <= rows
  assert texts_of(few, few.train) != texts_of(other, other.train)
  for labels in (1, 25):
    with pytest.raises(UserError, match="24 training examples of 2 classes; from 2 to 24 would do"):
      open_labelled(uri, length=7, labels=labels)


def test_texts_without_their_labels_and_a_tokenizer_that_a_run_has_kept(tmp_path):
  uri = f"csv:{csv_of(tmp_path)}"
  whole = open_labelled(uri, length=7, vocabulary=5)
  bare = without_labels(whole)
  assert set(bare.train.schema.features) == {"tokens"}
  assert bare.validation is None
  assert texts_of(bare, bare.test) == texts_of(whole, whole.test)
  assert bare.fingerprint != whole.fingerprint
  whole.keep(tmp_path)
  kept = open_labelled(uri, length=7, vocabulary=9, tokenizer=tmp_path / "tokenizer.json")
  assert kept.tokenizer.size == 5
  assert kept.fingerprint == whole.fingerprint


def test_docstrings_of_one_library(tmp_path, monkeypatch):
  from research.data import labelled_text

  monkeypatch.setattr(labelled_text, "LIBRARIES", ("absl", "optax"))
  monkeypatch.setattr(labelled_text, "_NAMES", labelled_text.re.compile(r"\b(optax|absl)\b", labelled_text.re.I))
  notes = []
  arguments = {"length": 50, "cache_dir": str(tmp_path), "progress": notes.append}
  first, again = (open_labelled("python:docstrings", **arguments) for _ in range(2))
  assert first.fingerprint == again.fingerprint
  assert len(notes) == 1  # the second time they are remembered
  assert first.train.schema.class_names == ("absl", "optax")
  assert first.train.size > 200
  assert not any(name in f" {text} " for text in texts_of(first, first.train) for name in (" optax ", " absl "))


def test_a_changed_text_or_length_changes_the_fingerprint(tmp_path):
  uri = f"csv:{csv_of(tmp_path)}"
  first = open_labelled(uri, length=7).fingerprint
  assert first == open_labelled(uri, length=7).fingerprint != open_labelled(uri, length=8).fingerprint
  csv_of(tmp_path, [("the cow", "cat"), *ROWS[1:]])
  assert open_labelled(uri, length=7).fingerprint != first


@pytest.mark.parametrize(
  ("content", "options", "message"),
  [
    ("text,class\na,b\nc\n", {}, "row 3 has 1 cells, and the header 2"),
    ("text,class\na,x\nb,x\n", {}, "has 1 classes; there must be two or more"),
    ("text,class\na,x\nb,y\n", {"target": "klass"}, r"no column 'klass' \(did you mean class\?\)"),
    ("text\na\n", {}, "needs a column of texts and one of classes, and rows; it has 1 rows of text"),
    ("text,class\na,x\nb,\n", {}, "row 3: the class, column 'class', is missing"),
    ("", {}, "needs a column of texts and one of classes"),
    ("text,class\na,x\nb,y\n", {"column": "text", "target": "text"}, "'text' is both"),
  ],
)
def test_tables_that_are_none_are_refused(tmp_path, content, options, message):
  path = write(tmp_path / "a.csv", content)
  with pytest.raises(UserError, match=message):
    open_labelled(f"csv:{path}", length=3, **options)


@pytest.mark.parametrize(
  ("uri", "message"),
  [
    ("sklearn:digits", "is no set of texts"),
    ("csb:a", r"did you mean csv\?"),
    ("folder:{}", "holds no class folders of .txt files"),
    ("jsonl:{}/b", "b"),
    ("python:stdlib", "no python:stdlib; python:docstrings"),
  ],
)
def test_what_is_no_set_of_texts_is_said(tmp_path, uri, message):
  with pytest.raises(UserError, match=message):
    open_labelled(uri.format(tmp_path), length=3)


def test_words_are_split_as_said(tmp_path):
  tokenizer = tokenizers.learn("word", ["A b, a C! a", "b d"], vocabulary=4)
  assert [tokenizer.decode([i]) for i in range(tokenizer.size)] == ["\ufffd", "a", "b", "!"]
  tokenizers.save(tokenizer, tmp_path / "t.json")
  assert tokenizers.digest(tokenizers.load(tmp_path / "t.json")) == tokenizers.digest(tokenizer)
  assert tokenizer.encode("B x A!").tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize(
  ("value", "message"),
  [("null", "line 2: the class, column 'class', is missing"), ('"\\udc00"', "line 2 has half of a surrogate pair")],
)
def test_json_lines_without_a_class_are_refused(tmp_path, value, message):
  path = write(tmp_path / "a.jsonl", '{"text": "a", "class": "x"}\n{"text": "b", "class": ' + value + "}\n")
  with pytest.raises(UserError, match=message):
    open_labelled(f"jsonl:{path}", length=3)
