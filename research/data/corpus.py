"""Texts for language models: documents by split, from files, JSON lines, or the standard library's own source.

Dividing is done here, by whole documents, or along the one document that there is: a model must not be judged on the
other half of a text that it was trained on.
"""

from __future__ import annotations

import dataclasses
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from research import nearest
from research.data import check
from research.data import fingerprint as fingerprints
from research.data.source import SPLIT_NAMES
from research.errors import UserError
from research.parsing import parse_json

SUFFIXES = {"text": (".txt", ".md", ".rst", ".text"), "jsonl": (".jsonl", ".ndjson")}
SCHEMES = ("text", "jsonl", "python")
_TEST, _VALIDATION = 3, 4  # what a random division is keyed with


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents by split: "train", and "validation", "test" where they are given or asked for."""

  name: str
  documents: Mapping[str, tuple[str, ...]]

  @property
  def fingerprint(self) -> str:
    """Of the texts and how they are divided."""
    return fingerprints.text(
      "corpus", *[part for split in sorted(self.documents) for part in (split, *self.documents[split])]
    )


def open_corpus(
  uri: str, *, validation_fraction: float = 0.1, test_fraction: float = 0.0, split_seed: int = 0
) -> Corpus:
  """Opens text:FILE, text:DIRECTORY (a document a file), jsonl:FILE[?field=text], jsonl:DIRECTORY or python:stdlib.

  A directory whose files or folders are called train, validation and test (or valid, val) brings its splits. Otherwise
  the test and the validation split are taken out: of several documents at random by `split_seed`, of a single one its
  end, the test's last.

  Raises:
    UserError: an unknown or missing source, text that is not UTF-8, a line that is no JSON object with that field, a
      corpus without text, or a split that would be empty.
  """
  scheme, colon, rest = uri.partition(":")
  if not colon or not rest or scheme not in SCHEMES:
    hint = nearest.hint(scheme, SCHEMES) if colon else ""
    raise UserError(f"data: {uri!r} is no text{hint}; sources of text are text:FILE, jsonl:FILE and python:stdlib")
  parts = _python(rest) if scheme == "python" else _files(scheme, rest)
  parts = {split: tuple(document for document in documents if document) for split, documents in parts.items()}
  if not any(parts.values()):
    raise UserError(f"data: {uri} holds no text")
  if "train" not in parts:
    parts = divide(uri, parts["all"], validation_fraction, test_fraction, split_seed)
  for split, documents in parts.items():
    if not documents:
      raise UserError(f"data: the {split} split of {uri} holds no text")
  return Corpus(uri, parts)


def divide(
  uri: str, documents: tuple[str, ...], validation: float, test: float, seed: int
) -> dict[str, tuple[str, ...]]:
  """{"train", …}: splits whose fraction is 0 are left out."""
  if len(documents) == 1:
    (text,) = documents
    ends = [round(len(text) * share) for share in (1 - validation - test, 1 - test, 1)]
    pieces = (text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :])
    named = zip(("train", "validation", "test"), pieces, strict=True)
    parts = {name: (piece,) if piece else () for name, piece in named}
  else:
    parts, rest = {}, np.arange(len(documents))
    for name, share, purpose in (("test", test, _TEST), ("validation", validation, _VALIDATION)):
      draws = np.random.Philox(key=[seed, purpose]).random_raw(len(rest))
      taken = np.argsort(draws, kind="stable")[: int(np.floor(share * len(documents) + 0.5))]
      parts[name] = tuple(documents[i] for i in np.sort(rest[taken]))
      rest = np.delete(rest, taken)
    parts["train"] = tuple(documents[i] for i in rest)
  wanted = {"train": 1.0, "validation": validation, "test": test}
  empty = [name for name, share in wanted.items() if share and not parts[name]]
  if empty:
    said = f"{len(documents)} documents" if len(documents) > 1 else f"{len(documents[0])} characters"
    raise UserError(f"data: {uri} has {said}, too few for a {empty[0]} split; --data.{empty[0]}_fraction=0 takes none")
  return {name: parts[name] for name, share in wanted.items() if share}


def _files(scheme: str, rest: str) -> dict[str, Iterable[str]]:
  path, _, options = rest.partition("?")
  field = "text"
  if options:
    name, equals, field = options.partition("=")
    if scheme != "jsonl" or name != "field" or not equals or not field:
      raise UserError(f"data: {scheme}:{rest} has an option {options!r}; jsonl: knows ?field=NAME")
  path = Path(path).expanduser()
  read = _text if scheme == "text" else lambda file: _lines(file, field)
  if path.is_file():
    return {"all": read(path)}
  if not path.is_dir():
    raise UserError(f"data: no file or folder {path}; --data.source={scheme}:FILE|DIR names what to read")
  files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES[scheme] and file.is_file())
  if not files:
    raise UserError(f"data: {path} has no files {', '.join('*' + suffix for suffix in SUFFIXES[scheme])}")
  parts: dict[str, list[str]] = {}
  for file in files:
    first = file.relative_to(path).parts[0]
    split = SPLIT_NAMES.get(Path(first).stem if len(file.relative_to(path).parts) == 1 else first, "all")
    parts.setdefault(split, []).extend(read(file))
  if "train" in parts and "all" not in parts:
    return parts
  return {"all": [document for split in sorted(parts) for document in parts[split]]}


def _text(path: Path) -> Iterator[str]:
  try:
    content = path.read_bytes()
    yield content.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    raise UserError(f"data: {path} is not UTF-8 at byte {error.start:,}; iconv -t utf8 may mend it") from error
  except OSError as error:
    raise UserError(f"data: cannot read {path}: {error.strerror or error}") from error


def _lines(path: Path, field: str) -> Iterator[str]:
  for text in _text(path):
    for number, line in enumerate(text.split("\n"), start=1):
      if not line.strip():
        continue
      try:
        content = parse_json(line)
      except ValueError as error:
        raise UserError(f"data: {path}, line {number} is no JSON ({error})") from error
      if not isinstance(content, dict) or field not in content:
        known = ", ".join(sorted(content)) if isinstance(content, dict) else "no object"
        raise UserError(f"data: {path}, line {number} has no text {field!r} ({known}); jsonl:FILE?field=NAME names it")
      if not isinstance(content[field], str):
        raise UserError(f"data: {path}, line {number}: {field!r} is no text but {json.dumps(content[field])[:40]}")
      yield check.text(content[field], f"data: {path}, line {number}")


def _python(rest: str) -> dict[str, Iterable[str]]:
  """The modules of the running Python's standard library, without its tests and what is installed beside it."""
  if rest != "stdlib":
    raise UserError(f"data: no python:{rest}; python:stdlib is the standard library's source")
  root = Path(sysconfig.get_paths()["stdlib"])
  skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
  files = (path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts))
  return {"all": _decodable(files)}


def _decodable(files: Iterable[Path]) -> Iterator[str]:
  """A few modules of the library are in other encodings on purpose; they are left out."""
  for path in files:
    try:
      yield path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
      continue


