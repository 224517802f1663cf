"""Where a series of numbers comes from: columns of a CSV file, rows in time order, or a formula with a known answer.

A series has a number in each row. What has not is refused with its line number: nothing is filled in or sorted here.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

import numpy as np

from research import nearest
from research.data import csv_table, fingerprint, synthetic
from research.errors import UserError

_CLOCK_PUT_BACK = dt.timedelta(hours=2)  # local times may step back so far, where summer time ends


@dataclasses.dataclass(frozen=True)
class Series:
  """Numbers in time order.

  Attributes:
    name: for messages.
    columns: the target's name, then the covariates'.
    values_TC: float64, finite.
    fingerprint: of all this.
    notes: choices made for the user, worth one line each.
  """

  name: str
  columns: tuple[str, ...]
  values_TC: np.ndarray
  fingerprint: str
  notes: tuple[str, ...] = ()


def read_series(uri: str, target: str = "", covariates: str = "") -> Series:
  """The series at csv:FILE or synthetic:NAME?option=value; `target` and `covariates` are as in `open_series`."""
  scheme, _, rest = uri.partition(":")
  if scheme == "csv" and rest:
    return _from_table(rest, target, covariates)
  if scheme == "synthetic" and rest:
    if target or covariates:
      raise UserError(f"data: --data.target and --series.covariates name columns of a csv file; {uri} has one series")
    return _from_formula(rest)
  raise UserError(f"data: {uri!r} is no series; there are csv:FILE and synthetic:{', synthetic:'.join(FORMULAS)}")


def _from_table(rest: str, target: str, covariates: str) -> Series:
  file, question, _ = rest.partition("?")
  if question:
    raise UserError(f"data: csv:{rest}: a series has no options; --series.covariates names the columns to be read")
  rows = csv_table.read_rows(nearest.existing(file, "file"))
  columns = _columns(rows, target, covariates)
  values_TC = np.stack([_values(rows, column) for column in columns], axis=1)
  unread = [column for column in rows.header if column not in columns]
  for column in unread:
    _check_time(rows, column)
  notes = [f"the target is column {columns[0]!r}"]
  if columns[1:]:
    notes.append(f"read beside it up to a forecast's origin: {_listed(columns[1:])}")
  if unread:
    notes.append(f"not read: {_listed(unread)}; --series.covariates names columns of numbers that should be")
  content = fingerprint.text("series", *columns, fingerprint.arrays({"values": values_TC}))
  return Series(f"csv:{file}", tuple(columns), values_TC, content, tuple(notes))


def _columns(rows: csv_table.Rows, target: str, covariates: str) -> list[str]:
  """The target, then the covariates in the file's order or the flag's."""

  def known(column: str, flag: str) -> str:
    if column not in rows.header:
      raise UserError(f"data: {rows.path}: --{flag} has no column {column!r}{nearest.hint(column, rows.header)}")
    return column

  def is_numeric(column: str) -> bool:
    return csv_table.numbers(rows, rows.header.index(column), required=False) is not None

  if target:
    known(target, "data.target")
  else:
    target = next((column for column in reversed(rows.header) if is_numeric(column)), "")
  if not target:
    raise UserError(f"data: {rows.path} has no column of numbers to forecast")
  if covariates == "*":
    return [target, *(column for column in rows.header if column != target and is_numeric(column))]
  chosen = [known(column.strip(), "series.covariates") for column in covariates.split(",") if column.strip()]
  if repeated := [column for place, column in enumerate(chosen) if column == target or column in chosen[:place]]:
    what = "the target, which is always read" if repeated[0] == target else "named twice"
    raise UserError(f"data: {rows.path}: --series.covariates: {repeated[0]!r} is {what}")
  return [target, *chosen]


def _values(rows: csv_table.Rows, column: str) -> np.ndarray:
  values_T = csv_table.numbers(rows, rows.header.index(column), required=True)
  if len(missing := np.flatnonzero(np.isnan(values_T))):
    raise UserError(
      f"data: {rows.path} line {rows.lines[missing[0]]}: column {column!r} is empty, in {len(missing)} of"
      f" {len(values_T)} rows; a series has a number in each"
    )
  return values_T


def _check_time(rows: csv_table.Rows, column: str) -> None:
  """Raises UserError where the column holds ISO 8601 dates or times, and they run backwards."""
  place = rows.header.index(column)
  try:
    times = [dt.datetime.fromisoformat(row[place]) for row in rows.cells]
    latest = times[0]
    for time, line in zip(times, rows.lines, strict=True):
      if time < latest - _CLOCK_PUT_BACK:
        raise UserError(f"data: {rows.path} line {line}: column {column!r} goes back in time to {time}; sort the rows")
      latest = max(latest, time)
  except (ValueError, TypeError):  # no times, or some with and some without an offset: nothing that can be compared
    return


def _listed(columns: list[str]) -> str:
  return ", ".join(map(repr, columns[:10])) + (f" and {len(columns) - 10} more" if len(columns) > 10 else "")


def seasonal(size: int = 3000, period: int = 24, noise: float = 0.3, trend: float = 0.0, seed: int = 0) -> np.ndarray:
  """Two sines of a period and of half of one, `trend` added over each period, and normal noise.

  What is best to forecast is the curve without the noise: its expected absolute error is noise·√(2/π), and that of the
  seasonal naive forecast, where there is no trend, √2 times as much.
  """
  time_T = np.arange(size)
  phase_T = 2 * np.pi * time_T / period
  curve_T = np.sin(phase_T) + 0.5 * np.sin(2 * phase_T + 1) + trend * time_T / period
  return curve_T + noise * _generator(seed).standard_normal(size)


def walk(size: int = 3000, noise: float = 1.0, seed: int = 0) -> np.ndarray:
  """The running sum of normal noise, of which nothing is better than the naive forecast."""
  return np.cumsum(noise * _generator(seed).standard_normal(size))


FORMULAS: dict[str, Callable[..., np.ndarray]] = {"seasonal": seasonal, "walk": walk}


def _from_formula(rest: str) -> Series:
  name, _, query = rest.partition("?")
  if name not in FORMULAS:
    raise UserError(f"data: no series 'synthetic:{name}'{nearest.hint(name, FORMULAS)}")
  chosen = synthetic.read_options(FORMULAS, name, query)
  # By recipe: sines differ in their last bits between machines.
  content = fingerprint.text("series formula 1", name, *[f"{key}={value!r}" for key, value in sorted(chosen.items())])
  return Series(f"synthetic:{rest}", ("y",), FORMULAS[name](**chosen)[:, None], content)


def _generator(seed: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=seed))
