"""csv:FILE[?drop=COLUMN,COLUMN], a table with a header line: columns of numbers and categories, and one target column.

What is ambiguous is an error with its line number, never a guess: ragged rows, a lone text among numbers, NaN.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np

from research import nearest
from research.data import fingerprint, table
from research.data.source import Dataset, Options
from research.errors import UserError

_MISSING = {"", "?", "na", "n/a", "null"}  # in lower case; "nan" is not among them: it is a number gone wrong
_USUAL_TARGETS = ("target", "label", "class")
_FEW = 20  # whole numbers with at most so many different values are classes; so many texts are always categories
_MANY = 1000  # categories of one column
_TYPO_SHARE = 0.95  # of a column's cells are numbers: then the others are slips, not categories


@dataclasses.dataclass(frozen=True)
class Rows:
  """A table as text: every row has as many cells as the header."""

  path: Path
  header: list[str]
  cells: list[list[str]]
  lines: list[int]  # the line of the file where each row begins


def open_dataset(rest: str, options: Options) -> Dataset:
  """"features": numbers standardised and categories one-hot, by the training split (table.py says how).

  The target is options.target, COLUMN or COLUMN:class or COLUMN:number; without it the column named target, label or
  class if there is one such, else the last. It is a class if it holds text, or whole numbers of at most 20 different
  values, unless :number says otherwise. Class names are sorted (as numbers, where they are).

  A cell is missing if it is empty, ?, NA, N/A or null. A missing number becomes the training mean, a missing category
  a category of its own; a missing target is an error. NaN and infinities are errors.
  """
  file, _, query = rest.partition("?")
  drop = _dropped(rest, query)
  rows = read_rows(nearest.existing(file, "file"))
  name = f"csv:{file}"
  target, kind = _target(rows, options.target)
  for column in drop:
    _place(rows, column, "no column to drop")
  if target in drop:
    raise UserError(f"data: {rows.path}: column {target!r} is both dropped and the target")
  output_N, class_names = _outputs(rows, target, kind)
  columns, numbers, codes, notes, identifying = [], [], [], [], []
  for place, column in enumerate(rows.header):
    if column in (target, *drop):
      continue
    categories, values = _column(rows, place)
    if _identifies(categories, values):
      identifying.append(column)
    columns.append(table.Column(column, categories))
    (codes if categories else numbers).append(values)
    if missing := int((values == table.MISSING).sum() if categories else np.isnan(values).sum()):
      becomes = "a category of their own" if categories else "the training mean"
      notes.append(f"column {column!r}: {missing} missing cells of {len(values)} become {becomes}")
  if identifying:
    raise UserError(
      f"data: {rows.path}: most rows have a text of their own in {', '.join(map(repr, identifying))};"
      f" those are no categories; leave them out: csv:{file}?drop={','.join([*sorted(drop), *identifying])}"
    )
  what = f"one of {len(class_names)} classes" if class_names else "a number"
  notes.insert(0, f"the target is column {target!r}, {what}")
  content = fingerprint.text("csv 1", fingerprint.file(rows.path), target, class_names, sorted(drop))
  size = len(rows.cells)
  numbers_NK = np.stack(numbers, 1) if numbers else np.zeros((size, 0))
  codes_NM = np.stack(codes, 1) if codes else np.zeros((size, 0), np.int32)
  source = table.raw_source(name, columns, numbers_NK, codes_NM, output_N, class_names, content)
  return Dataset({"all": source}, lambda train: table.fit(columns, train), tuple(notes))


def _dropped(rest: str, query: str) -> set[str]:
  options = parse_qs(query, keep_blank_values=True)
  if unknown := [key for key in options if key != "drop"]:
    raise UserError(f"data: csv:{rest} has an unknown option {unknown[0]!r} (known: drop)")
  return {column for text in options.get("drop", []) for column in text.split(",")}


def read_rows(path: Path) -> Rows:
  """The table at `path`, separated by commas, semicolons or tabs. Raises UserError for what is ragged or no table."""
  cells, lines = [], []
  try:
    with path.open(newline="", encoding="utf-8-sig") as stream:
      first = stream.readline()
      stream.seek(0)
      reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), strict=True, skipinitialspace=True)
      line = 1
      for row in reader:
        if any(cell.strip() for cell in row):
          cells.append([cell.strip() for cell in row])
          lines.append(line)
        line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f"data: {path} line {reader.line_num}: {error}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"data: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
  except OSError as error:
    raise UserError(f"data: cannot read {path}: {error.strerror}") from error
  if not cells:
    raise UserError(f"data: {path} is empty; line 1 names the columns")
  header = cells[0]
  if all(_number(cell) is not None for cell in header):
    raise UserError(f"data: {path} line 1 holds numbers; it must name the columns")
  if repeated := [column for column in header if header.count(column) > 1 or not column]:
    raise UserError(f"data: {path} line 1: column name {repeated[0]!r} is {'repeated' if repeated[0] else 'empty'}")
  for row, line in zip(cells, lines, strict=True):
    if len(row) != len(header):
      raise UserError(f"data: {path} line {line} has {len(row)} fields, the header has {len(header)}")
  if len(cells) == 1:
    raise UserError(f"data: {path} has a header but no rows")
  return Rows(path, header, cells[1:], lines[1:])


def _target(rows: Rows, asked: str) -> tuple[str, str]:
  """(column, "class", "number" or "")."""
  if asked:
    column, _, kind = asked.rpartition(":")
    if column and asked not in rows.header:
      if kind not in ("class", "number"):
        raise UserError(f"data: target {asked!r}: after the column comes :class or :number")
    else:
      column, kind = asked, ""
    _place(rows, column, "no target column")
    return column, kind
  usual = [column for column in rows.header if column.lower() in _USUAL_TARGETS]
  return (usual[0] if len(usual) == 1 else rows.header[-1]), ""


def _place(rows: Rows, column: str, problem: str) -> int:
  if column not in rows.header:
    raise UserError(f"data: {rows.path}: {problem} {column!r}{nearest.hint(column, rows.header)}")
  return rows.header.index(column)


def _outputs(rows: Rows, target: str, kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
  """Class numbers and class names, or numbers and ()."""
  place = rows.header.index(target)
  texts = [row[place] for row in rows.cells]
  for text, line in zip(texts, rows.lines, strict=True):
    if text.lower() in _MISSING:
      raise UserError(f"data: {rows.path} line {line}: the target, column {target!r}, is missing")
  parsed = numbers(rows, place, required=kind == "number")
  if parsed is None:
    codes_N, class_names = _codes(rows, place)
    if _identifies(class_names, codes_N):
      raise UserError(
        f"data: {rows.path}: the target, column {target!r}, has {len(class_names)} different texts in"
        f" {len(rows.cells)} rows; those are no classes; name another column as the target"
      )
    return codes_N, class_names
  distinct = np.unique(parsed)
  whole = bool((distinct == np.floor(distinct)).all())
  if kind == "number" or (not kind and not (whole and len(distinct) <= _FEW)):
    return parsed, ()
  class_names = tuple(f"{value:.0f}" if whole else repr(float(value)) for value in distinct)
  return np.searchsorted(distinct, parsed), class_names


def _column(rows: Rows, place: int) -> tuple[tuple[str, ...], np.ndarray]:
  """((), numbers with NaN where missing), or (categories, codes with MISSING)."""
  parsed = numbers(rows, place, required=False)
  if parsed is not None:
    return (), parsed
  codes_N, categories = _codes(rows, place)
  return categories, codes_N


def numbers(rows: Rows, place: int, required: bool) -> np.ndarray | None:
  """The column as float64, NaN where missing; None if it holds texts. Raises UserError for NaN, an infinity, or a text
  where numbers are `required` or nearly all cells are numbers."""
  column, numbers, text = rows.header[place], np.full(len(rows.cells), np.nan), None
  count = present = 0
  for index, row in enumerate(rows.cells):
    if row[place].lower() in _MISSING:
      continue
    present += 1
    number = _number(row[place])
    if number is None:
      text = index if text is None else text
      continue
    count += 1
    if not math.isfinite(number):
      where, wrong = f"{rows.path} line {rows.lines[index]}", f"column {column!r} is {row[place]}"
      raise UserError(f"data: {where}: {wrong}, which no number may be; a missing one is left empty")
    numbers[index] = number
  if text is None:
    return numbers
  if required or count >= max(1, _TYPO_SHARE * present):
    raise UserError(
      f"data: {rows.path} line {rows.lines[text]}: {rows.cells[text][place]!r} in column {column!r} is not a number;"
      f" {count} of its {present} cells are"
    )
  return None


def _codes(rows: Rows, place: int) -> tuple[np.ndarray, tuple[str, ...]]:
  texts = [row[place] for row in rows.cells]
  categories = tuple(sorted({text for text in texts if text.lower() not in _MISSING}))
  number = {text: code for code, text in enumerate(categories)}
  return np.array([number.get(text, table.MISSING) for text in texts], np.int32), categories


def _identifies(categories: tuple[str, ...], codes_N: np.ndarray) -> bool:
  """Whether texts tell rows apart, as names do, rather than grouping them."""
  present = np.count_nonzero(codes_N != table.MISSING)
  return len(categories) > _FEW and len(categories) > min(_MANY, present // 2)


def _number(text: str) -> float | None:
  try:
    return None if "_" in text else float(text)  # Python reads 1_000; a spreadsheet does not
  except ValueError:
    return None
