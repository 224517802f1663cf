"""Texts with a class each: tables, JSON lines, folders, TFDS sets, and the docstrings of libraries that are installed.

A vocabulary is learned from the training split alone. What is not a text with a class is refused by name.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research import nearest
from research.data import cache, check, tokenizers
from research.data import fingerprint as fingerprints
from research.data.source import SPLIT_NAMES, ArraySource, Dataset, Feature, Schema, Source, View
from research.data.splits import splits_of, stratified
from research.data.text import TextSplits
from research.errors import UserError
from research.parsing import parse_json

SCHEMES = ("csv", "jsonl", "folder", "tfds", "python")
LIBRARIES = ("flax", "jax", "matplotlib", "numpy", "optax", "orbax", "rich", "scipy", "sklearn", "tensorflow_datasets")
NO_TOKEN = -1
_LABELS = 5  # what the choice of labels is keyed with

Pairs = Mapping[str, list[tuple[str, str]]]  # split, or "all" → (text, class)
Progress = Callable[[str], None]


def open_labelled(
  uri: str,
  *,
  length: int,
  tokenizer: str | Path = "word",
  vocabulary: int = 20_000,
  column: str = "",
  target: str = "",
  data_dir: str = "",
  cache_dir: str = "",
  validation_fraction: float = 0.0,
  test_fraction: float = 0.2,
  split_seed: int = 0,
  labels: int = 0,
  labels_seed: int = 0,
  progress: Progress = lambda line: None,
) -> TextSplits:
  """Splits of "tokens" (length,) int32, NO_TOKEN behind a text's end, and "label".

  Args:
    uri: csv:FILE, jsonl:FILE, folder:DIR of class folders of .txt files (with or without train and test), tfds:NAME,
      or python:docstrings: which of LIBRARIES a docstring is from.
    length: tokens of a text that are kept.
    tokenizer: word, char, byte or bpe; or the file that a run has kept.
    vocabulary: the most tokens of word and bpe.
    column: csv and jsonl: where the text stands; "": the column of the longest texts.
    target: csv and jsonl: where the class stands; "": the last other column.
    data_dir: where TFDS sets are prepared.
    cache_dir: where docstrings are remembered.
    labels: how many of the training examples are kept, each class by its share; 0: all. The vocabulary is learned
      from all training texts: it needs no labels.
    labels_seed: of which these are.

  Further arguments and errors are as in `open_splits`.
  """
  scheme, colon, rest = uri.partition(":")
  if scheme not in SCHEMES or not colon or not rest:
    raise UserError(f"data: {uri!r} is no set of texts{nearest.hint(scheme, SCHEMES)}; there are {', '.join(SCHEMES)}")
  if (column or target) and scheme not in ("csv", "jsonl"):
    raise UserError(f"data: --text.column and --data.target are for csv and jsonl; {uri} brings its own")
  learned = []

  def open_dataset() -> Dataset:
    pairs = {
      "csv": lambda: _table(rest, column, target),
      "jsonl": lambda: _lines(rest, column, target),
      "folder": lambda: _folder(rest),
      "tfds": lambda: _tfds(rest, data_dir),
      "python": lambda: _docstrings(rest, cache.directory(cache_dir), progress),
    }[scheme]()
    dataset, texts = as_dataset(uri, pairs)

    def fit(train: Source) -> Callable[[Source], Source]:
      if isinstance(tokenizer, Path):
        learned.append(tokenizers.load(tokenizer))
      else:
        learned.append(tokenizers.learn(tokenizer, [texts[row] for row in train.column("row")], vocabulary))
      return lambda source: encode(source, texts, learned[0], length)

    return dataclasses.replace(dataset, fit=fit)

  splits = splits_of(
    open_dataset, validation_fraction=validation_fraction, test_fraction=test_fraction, split_seed=split_seed
  )
  about = [splits.fingerprint, tokenizers.digest(learned[0]), length]
  train = splits.train
  if labels:
    train = fewer(train, labels, labels_seed)
    about.append(train.fingerprint)
  fields = {field.name: getattr(splits, field.name) for field in dataclasses.fields(splits)}
  fields |= {"train": train, "fingerprint": fingerprints.text("labelled", *about)}
  return TextSplits(**fields, tokenizer=learned[0])


def fewer(train: Source, labels: int, seed: int) -> Source:
  """`labels` of its examples, each class by its share. UserError where there are not so many, or classes are more."""
  classes = len(train.schema.class_names)
  if not classes <= labels <= train.size:
    raise UserError(
      f"data: {labels:,} labels of {train.name}, which has {train.size:,} training examples of {classes} classes;"
      f" from {classes} to {train.size:,} would do"
    )
  is_kept_N = stratified(train.column("label"), labels, np.random.Philox(key=[seed, _LABELS]))
  return View(train, np.flatnonzero(is_kept_N))


def without_labels(splits: TextSplits) -> TextSplits:
  """The same texts in the same splits, their classes forgotten."""

  def forget(source: Source | None) -> ArraySource | None:
    if source is None:
      return None
    arrays = {"tokens": source.column("tokens")}
    schema = Schema({"tokens": source.schema.features["tokens"]})
    return ArraySource(source.name, schema, arrays, fingerprints.arrays(arrays))

  return dataclasses.replace(
    splits,
    train=forget(splits.train),
    validation=forget(splits.validation),
    test=forget(splits.test),
    fingerprint=fingerprints.text("without labels", splits.fingerprint),
    notes=(),
  )


def as_dataset(name: str, pairs: Pairs) -> tuple[Dataset, list[str]]:
  """Numbers of texts with their labels, to be divided like any other set; and the texts."""
  class_names = tuple(sorted({label for part in pairs.values() for _, label in part}))
  if len(class_names) < 2:
    raise UserError(f"data: {name} has {len(class_names)} classes; there must be two or more to tell apart")
  places = {label: place for place, label in enumerate(class_names)}
  schema = Schema({"row": Feature((), "int32"), "label": Feature((), "int32")}, class_names)
  texts, parts = [], {}
  for split, part in pairs.items():
    arrays = {
      "row": np.arange(len(texts), len(texts) + len(part), dtype=np.int32),
      "label": np.asarray([places[label] for _, label in part], np.int32),
    }
    content = fingerprints.text("texts", *[item for pair in part for item in pair])
    parts[split] = ArraySource(name if split == "all" else f"{name} ({split})", schema, arrays, content)
    texts += [text for text, _ in part]
  return Dataset(parts), texts


def encode(source: Source, texts: list[str], tokenizer: tokenizers.Tokenizer, length: int) -> ArraySource:
  """The texts that `source` numbers, as tokens."""
  tokens_NL = np.full((source.size, length), NO_TOKEN, np.int32)
  for place, row in enumerate(source.column("row")):
    ids = tokenizer.encode(texts[row])[:length]
    tokens_NL[place, : len(ids)] = ids
  arrays = {"tokens": tokens_NL, "label": source.column("label")}
  schema = Schema({"tokens": Feature((length,), "int32"), "label": Feature((), "int32")}, source.schema.class_names)
  return ArraySource(source.name, schema, arrays, fingerprints.arrays(arrays))


def _table(rest: str, column: str, target: str) -> Pairs:
  path = nearest.existing(rest, "file")
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.reader(file, strict=True)
      names, rows = next(reader, []), list(reader)
  except UnicodeDecodeError as error:
    raise UserError(f"data: {path} is not UTF-8 ({error.reason} at byte {error.start:,})") from error
  except (csv.Error, OSError) as error:
    raise UserError(f"data: {path} is no table that can be read ({error})") from error
  for number, row in enumerate(rows, start=2):
    if len(row) != len(names):
      raise UserError(f"data: {path}, row {number} has {len(row)} cells, and the header {len(names)}")
  found = {f"row {number}": dict(zip(names, row, strict=True)) for number, row in enumerate(rows, start=2)}
  return _columns(str(path), found, names, column, target)


def _lines(rest: str, column: str, target: str) -> Pairs:
  path = nearest.existing(rest, "file")
  rows, names = {}, []
  for number, line in enumerate(_read(path).split("\n"), start=1):
    if line.strip():
      try:
        row = parse_json(line)
      except ValueError as error:
        raise UserError(f"data: {path}, line {number} is no JSON ({error})") from error
      if not isinstance(row, dict) or (rows and row.keys() != set(names)):
        raise UserError(f"data: {path}, line {number} has not the fields of the first line")
      names = names or list(row)
      rows[f"line {number}"] = {name: _cell(value, f"data: {path}, line {number}") for name, value in row.items()}
  return _columns(str(path), rows, names, column, target)


def _cell(value: Any, where: str) -> str:
  """null is an empty cell, as in a table."""
  if isinstance(value, str):
    return check.text(value, where)
  return "" if value is None else json.dumps(value)


def _columns(name: str, rows: dict[str, dict[str, str]], names: list[str], column: str, target: str) -> Pairs:
  """rows: {where it stands: {column: cell}}."""
  for asked in (column, target):
    if asked and asked not in names:
      raise UserError(f"data: {name} has no column {asked!r}{nearest.hint(asked, names)}; it has {', '.join(names)}")
  if not rows or len(names) < 2:
    raise UserError(
      f"data: {name} needs a column of texts and one of classes, and rows; it has {len(rows)} rows of"
      f" {', '.join(names) or 'nothing'}"
    )
  column = column or max(
    (each for each in names if each != target), key=lambda each: sum(len(row[each]) for row in rows.values())
  )
  target = target or [each for each in names if each != column][-1]
  if column == target:
    raise UserError(f"data: {column!r} is both --text.column and --data.target")
  for where, row in rows.items():
    if not row[target].strip():
      raise UserError(f"data: {name}, {where}: the class, column {target!r}, is missing")
  return {"all": [(row[column], row[target]) for row in rows.values()]}


def _folder(rest: str) -> Pairs:
  root = nearest.existing(rest, "folder")
  inside = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
  has_splits = "train" in inside and any(path.is_dir() for path in inside["train"].iterdir())
  parts = {SPLIT_NAMES[name]: path for name, path in inside.items() if name in SPLIT_NAMES} if has_splits else None
  found = {
    split: [
      (_read(path), folder.name)
      for folder in sorted(each.iterdir())
      if folder.is_dir()
      for path in sorted(folder.rglob("*.txt"))
    ]
    for split, each in (parts or {"all": root}).items()
  }
  if not any(found.values()):
    raise UserError(f"data: folder:{rest} holds no class folders of .txt files")
  return found


def _tfds(rest: str, data_dir: str) -> Pairs:
  from research.data import tfds_source

  name, _, split = rest.partition(":")
  folder = tfds_source.prepared_folder(name, tfds_source.data_directory(data_dir))
  builder = tfds_source.open_builder(folder)
  tfds = tfds_source.library()
  features = dict(builder.info.features.items())
  texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if not texts or len(labels) != 1:
    raise UserError(f"data: tfds:{name} has {', '.join(features)}; needed are a text and one class label")
  text = "text" if "text" in texts else texts[-1]  # ag_news has a title before its description
  names = features[labels[0]].names
  wanted = {"all": split} if split else {SPLIT_NAMES[own]: own for own in builder.info.splits if own in SPLIT_NAMES}
  return {
    part: [(row[text].decode("utf-8"), names[int(row[labels[0]])]) for row in builder.as_data_source(split=own)]
    for part, own in wanted.items()
  }


def _docstrings(rest: str, cache_dir: Path, progress: Progress) -> Pairs:
  """(docstring, its library); libraries' names are blanked. A fifth of the files is the test split."""
  if rest != "docstrings":
    raise UserError(f"data: no python:{rest}; python:docstrings are those of {', '.join(LIBRARIES)}")
  found = {name: spec for name in LIBRARIES if (spec := importlib.util.find_spec(name)) is not None}
  roots = {name: Path(next(iter(spec.submodule_search_locations))) for name, spec in found.items()}
  versions = importlib.metadata.packages_distributions()
  stamp = [f"{name} {[importlib.metadata.version(each) for each in sorted(set(versions[name]))]}" for name in roots]
  memo = cache_dir / "docstrings" / f"{fingerprints.text('docstrings 1', *stamp)}.json"
  pairs = fingerprints.read_json(memo)
  if not pairs:
    progress(f"reading the docstrings of {', '.join(roots)}, once")
    pairs = {"train": [], "test": []}
    for name, root in roots.items():
      for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if not {"tests", "testing", "_vendor", "externals"} & set(place.parts):
          split = "test" if hashlib.sha256(f"{name}/{place}".encode()).digest()[0] < 51 else "train"
          pairs[split] += [[text, name] for text in _docstrings_of(path)]
    fingerprints.write_json(memo, pairs)
  return {split: [(text, name) for text, name in part] for split, part in pairs.items()}


_NAMES = re.compile(r"\b(" + "|".join((*LIBRARIES, "np", "jnp", "plt", "mpl", "tfds", "linen", "nnx")) + r")\b", re.I)


def _docstrings_of(path: Path) -> Iterator[str]:
  try:
    tree = ast.parse(path.read_text("utf-8"))
  except (SyntaxError, UnicodeDecodeError, OSError, ValueError):
    return
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      text = ast.get_docstring(node) or ""
      if len(text.split()) >= 10:
        yield _NAMES.sub("library", text[:2000])


def _read(path: Path) -> str:
  try:
    return path.read_text("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"data: {path} is not UTF-8 at byte {error.start:,}") from error
  except OSError as error:
    raise UserError(f"data: cannot read {path}: {error.strerror or error}") from error
