"""A numeric series as windows: what is known at an origin, and what comes after it and is to be forecast.

The splits follow time, training first, then validation, then the test. A window of evaluation may begin before its
split, in what is past by then; what it has to forecast lies inside. Nothing that training sees, its standardising
included, depends on a value behind its split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from research.data import check, table
from research.data import fingerprint as fingerprints
from research.data.series_sources import Series, read_series
from research.data.source import Array, Feature, Schema, checked_indices
from research.data.splits import Splits
from research.errors import UserError

_RULE = "series 1"  # part of the fingerprint: raise it when the same values would give other windows


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesWindows:
  """A Source of windows, one for each place where a whole one fits. They are cut out on the device: what is stored is
  the series, not its windows.

  Example i is "features" (L, C) float32, rows i to i+L−1, and "target" (H,) float32, column 0 of the H rows after.

  Attributes:
    name: of the split, for messages.
    values_TC: float32, standardised; the target is column 0.
    columns: their names.
    context: L.
    horizon: H.
    fingerprint: of all this.
  """

  name: str
  values_TC: np.ndarray
  columns: tuple[str, ...]
  context: int
  horizon: int
  fingerprint: str

  @property
  def schema(self) -> Schema:
    features = {
      "features": Feature((self.context, len(self.columns)), "float32"),
      "target": Feature((self.horizon,), "float32"),
    }
    return Schema(features, feature_names=self.columns)

  @property
  def size(self) -> int:
    return len(self.values_TC) - self.context - self.horizon + 1

  @property
  def nbytes(self) -> int:
    return self.values_TC.nbytes

  def stored(self) -> Mapping[str, np.ndarray]:
    return {"series": self.values_TC}

  def take(self, stored: Mapping[str, Array], indices: Array) -> dict[str, Array]:
    xp = np if isinstance(indices, np.ndarray) else jnp
    window = xp.arange(self.context + self.horizon, dtype=xp.int32).reshape((1,) * indices.ndim + (-1,))
    rows = stored["series"][xp.asarray(indices, xp.int32)[..., None] + window]
    return {"features": rows[..., : self.context, :], "target": rows[..., self.context :, 0]}

  def gather(self, indices) -> dict[str, np.ndarray]:
    return self.take(self.stored(), checked_indices(indices, self.size))

  def column(self, name: str) -> np.ndarray:
    return self.gather(np.arange(self.size))[name]


@dataclasses.dataclass(frozen=True)
class SeriesSplits(Splits):
  """Splits of windows. `target_mean` and `target_std` are what the target was standardised by.

  Attributes:
    seasonal_error: mean |y_t − y_{t−season}| of the training values, in the target's unit: what MASE is scaled by.
    latest_LC: (context, C) float32, standardised: the series' last rows, from which what follows it can be forecast.
  """

  seasonal_error: float = 0.0
  latest_LC: np.ndarray | None = None


def open_series(
  uri: str,
  *,
  context: int,
  horizon: int,
  season: int,
  target: str = "",
  covariates: str = "",
  validation_fraction: float = 0.0,
  test_fraction: float = 0.2,
) -> SeriesSplits:
  """Opens `uri` (see series_sources.py) and cuts it in time, as `split` does.

  Args:
    target: csv: the column to forecast; "": the last one of numbers.
    covariates: csv: other columns that are read, A,B; "*": all other columns of numbers.

  Further arguments are those of `split`. Raises UserError for a source that is no series of numbers.
  """
  series = read_series(uri, target, covariates)
  return split(
    series,
    context=context,
    horizon=horizon,
    season=season,
    validation_fraction=validation_fraction,
    test_fraction=test_fraction,
  )


def split(
  series: Series, *, context: int, horizon: int, season: int, validation_fraction: float, test_fraction: float
) -> SeriesSplits:
  """Cuts a series in time.

  The test is the last round(test_fraction · T) of the T rows, halves rounding up, validation the same share of the
  rows before it, and training what remains. Every column is standardised by its training rows.

  Args:
    context: L, rows that a forecast sees.
    horizon: H, values that it is of.
    season: rows of a season, at most `context`.

  Raises UserError for a split with no room for a window, and a target that is the same throughout training.
  """
  ends = boundaries(series, validation_fraction, test_fraction, context, horizon)
  values_TC, first_end = series.values_TC, ends["train"][1]
  rules = [table.standardiser(column_T) for column_T in values_TC[:first_end].T]
  if rules[0][1] == 0:
    raise UserError(
      f"data: {series.name}: column {series.columns[0]!r} is {rules[0][0]:g} in all {first_end:,} training rows;"
      " there is nothing to forecast"
    )
  with np.errstate(over="ignore"):  # what overflows is infinite, and the check names its column
    columns = [table.standardised(column_T, *rule) for column_T, rule in zip(values_TC.T, rules, strict=True)]
    standard_TC = np.stack(columns, axis=1).astype(np.float32)
  check.finite(series.name, series.columns, standard_TC)

  parts = {}
  for name, (first, last) in ends.items():
    parts[name] = SeriesWindows(
      f"the {name} split of {series.name}",
      standard_TC[max(0, first - context) : last],
      series.columns,
      context,
      horizon,
      fingerprints.text(_RULE, series.fingerprint, first, last, first_end, context, horizon),
    )
  error = seasonal_error(values_TC[:first_end, 0], season)
  notes = series.notes if error else (*series.notes, f"training repeats itself each {season} rows: there is no MASE")
  return SeriesSplits(
    parts["train"],
    parts.get("validation"),
    parts.get("test"),
    fingerprints.text(_RULE, *[part.fingerprint for part in parts.values()]),
    target_mean=rules[0][0],
    target_std=rules[0][1],
    notes=notes,
    seasonal_error=error,
    latest_LC=standard_TC[-context:],
  )


def boundaries(
  series: Series, validation_fraction: float, test_fraction: float, context: int, horizon: int
) -> dict[str, tuple[int, int]]:
  """{split: (its first row, the row after its last)}, in time. Raises UserError where a split has no window."""
  train = size = len(series.values_TC)
  ends = {}
  for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
    if fraction:
      taken = int(np.floor(fraction * train + 0.5))
      if taken < horizon:
        raise UserError(
          f"data: the {name} split of {series.name} would have {taken:,} of its {size:,} rows, fewer than a horizon of"
          f" {horizon}; give more to --data.{name}_fraction={fraction:g}, or 0 for none"
        )
      ends[name], train = (train - taken, train), train - taken
  if train < context + horizon:
    room = train - horizon
    fitting = f"--series.context={room} would fit" if room >= 1 else f"--series.horizon={max(1, train - 1)} is the most"
    raise UserError(
      f"data: {series.name} has {train:,} rows for training, fewer than a context of {context} and a horizon of"
      f" {horizon}; {fitting}"
    )
  return {"train": (0, train), **dict(reversed(ends.items()))}


def seasonal_error(values_T: np.ndarray, season: int) -> float:
  """mean |y_t − y_{t−season}| (Hyndman and Koehler 2006, section 2.4, where season is 1), float64."""
  if not 0 < season < len(values_T):
    raise ValueError(f"seasonal_error: a season of {season} in {len(values_T)} values")
  return float(np.abs(values_T[season:] - values_T[:-season]).mean())
