"""Raw columns of numbers and categories, and how the training split turns them into "features" (N, D) float32.

Statistics and categories come from the training split alone; the target is never touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.data import check
from research.data import fingerprint as fingerprints
from research.data.source import ArraySource, Dataset, Encode, Feature, Schema, Source
from research.errors import UserError

MISSING = -1  # the code of a missing category; a missing number is NaN
_RULE = "table 1"  # part of the fingerprint: raise it when the same columns would give other features


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of numbers, or, with `categories`, of codes 0..len(categories)-1 into them (MISSING where empty)."""

  name: str
  categories: tuple[str, ...] = ()


def raw_source(
  name: str,
  columns: Sequence[Column],
  numbers_NK: np.ndarray,
  codes_NM: np.ndarray,
  output_N: np.ndarray,
  class_names: tuple[str, ...],
  fingerprint: str,
) -> ArraySource:
  """A table before encoding: "numbers" (K,) float64 and "codes" (M,) int32 in the columns' order, and "label" where
  there are class names, else "target"."""
  output, dtype = ("label", np.int32) if class_names else ("target", np.float32)
  if class_names:
    check.labels(name, output_N, len(class_names))  # before a cast could wrap a label into the range
  with np.errstate(over="ignore"):  # a target beyond float32 becomes infinite, which check.outputs refuses
    output_N = np.asarray(output_N).astype(dtype)
  arrays = {
    "numbers": np.asarray(numbers_NK, np.float64),
    "codes": np.asarray(codes_NM, np.int32),
    output: output_N,
  }
  features = {key: Feature(array.shape[1:], array.dtype.name) for key, array in arrays.items()}
  schema = Schema(features, class_names, tuple(column.name for column in columns))
  return ArraySource(name, schema, arrays, fingerprint)


def numeric_dataset(
  name: str, column_names: Sequence[str], parts: dict[str, tuple[np.ndarray, np.ndarray]], class_names: tuple[str, ...]
) -> Dataset:
  """A table of finite numbers: `parts` maps a split's name to (features (N, D), labels or targets (N,)).

  Raises UserError naming the column and example of a NaN or an infinity."""
  columns = [Column(column) for column in column_names]
  sources = {}
  for part, (numbers_NK, output_N) in parts.items():
    title = name if part == "all" else f"{name} ({part})"
    check.finite(title, tuple(column_names), numbers_NK)
    content = fingerprints.arrays({"features": numbers_NK, "output": output_N, "classes": np.array(class_names, "U")})
    no_codes_NM = np.zeros((len(output_N), 0), np.int32)
    sources[part] = raw_source(title, columns, numbers_NK, no_codes_NM, output_N, class_names, content)
  return Dataset(sources, lambda train: fit(columns, train))


def fit(columns: Sequence[Column], train: Source) -> Encode:
  """Learns from `train`, a raw source, how to encode any raw source of the same columns.

  A number becomes (x - mean) / std (population std); a constant column becomes 0, and a missing number 0, the
  training mean. A category becomes one-hot over those seen in training, missing being one of them where it was seen;
  what was not seen becomes all zeros.
  """
  numbers_NK, codes_NM = train.column("numbers"), train.column("codes")
  encoders, names = [], []
  number = code = 0
  for column in columns:
    if column.categories:
      seen = np.unique(codes_NM[:, code])
      encoders.append(("codes", code, seen))
      names += [f"{column.name}={column.categories[c] if c != MISSING else '(missing)'}" for c in seen]
      code += 1
    else:
      encoders.append(("numbers", number, standardiser(numbers_NK[:, number])))
      names.append(column.name)
      number += 1
  if not names:
    raise UserError(f"data: {train.name} has no feature columns beside its {train.schema.output}")
  learned = fingerprints.text(_RULE, train.fingerprint)

  def encode(source: Source) -> ArraySource:
    features_ND = np.zeros((source.size, len(names)), np.float32)
    raw = {key: source.column(key) for key in ("numbers", "codes")}
    start = 0
    for kind, position, rule in encoders:
      column_N = raw[kind][:, position]
      with np.errstate(over="ignore"):  # what overflows is infinite, and the check below names its column
        encoded_NW = column_N[:, None] == rule if kind == "codes" else standardised(column_N, *rule)[:, None]
        features_ND[:, start : start + encoded_NW.shape[1]] = encoded_NW
      start += encoded_NW.shape[1]
    check.finite(source.name, tuple(names), features_ND)
    output = source.schema.output
    schema = Schema(
      {"features": Feature((len(names),), "float32"), output: source.schema.features[output]},
      source.schema.class_names,
      tuple(names),
    )
    arrays = {"features": features_ND, output: np.ascontiguousarray(source.column(output))}
    return ArraySource(source.name, schema, arrays, fingerprints.text(_RULE, learned, source.fingerprint))

  return encode


def class_names_of(labels_N: np.ndarray, name: str) -> tuple[str, ...]:
  """Names "0".."C-1" for bare integer labels. Raises UserError where they cannot be class numbers: below 0, or so
  large that nearly every class would be empty."""
  if len(labels_N) == 0:
    raise UserError(f"data: {name} is empty; a split needs at least one example")
  limit = max(1000, len(labels_N))
  if len(bad := np.flatnonzero((labels_N < 0) | (labels_N >= limit))):
    raise UserError(
      f"data: {name}: label {labels_N[bad[0]]} of example {bad[0]} is out of range; labels are class numbers from 0,"
      f" below {limit} for {len(labels_N)} examples"
    )
  return tuple(str(number) for number in range(int(labels_N.max()) + 1))


def standardiser(column_N: np.ndarray) -> tuple[float, float]:
  """(mean, std) in float64 over the numbers that are not missing; std 0 marks a constant column, exactly."""
  present_N = column_N[~np.isnan(column_N)]
  if present_N.size == 0 or present_N.min() == present_N.max():
    return (float(present_N[0]) if present_N.size else 0.0), 0.0
  scale = float(np.abs(present_N).max())  # so that no square overflows
  return float((present_N / scale).mean() * scale), float((present_N / scale).std() * scale)


def standardised(column_N: np.ndarray, mean: float, std: float) -> np.ndarray:
  """(x - mean) / std, and 0 for what is missing or for a column that is constant, (N,) float64."""
  if std == 0:
    return np.zeros(len(column_N))
  return np.where(np.isnan(column_N), 0.0, (column_N - mean) / std)


