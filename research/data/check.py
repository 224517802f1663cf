"""Checks on the content of a source, each a UserError that names the column or example. Nothing is mended here."""

from __future__ import annotations

import numpy as np

from research.data.source import Source
from research.errors import UserError


def outputs(source: Source) -> None:
  """At least one example; labels within the classes; targets finite."""
  if source.size == 0:
    raise UserError(f"data: {source.name} is empty; a split needs at least one example")
  output_N = source.column(source.schema.output)
  if source.schema.output == "target":
    if len(bad := np.flatnonzero(~np.isfinite(output_N))):
      raise UserError(f"data: {source.name}: the target of example {bad[0]} is {output_N[bad[0]]}, not a finite number")
    return
  labels(source.name, output_N, len(source.schema.class_names))


def text(text: str, where: str) -> str:
  """The text itself, which must have a UTF-8 form: JSON may spell half of a surrogate pair, which is no character."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{where} has half of a surrogate pair ({text[error.start]!a}) at character {error.start:,}; it is no character"
    ) from error
  return text


def labels(name: str, labels_N: np.ndarray, classes: int) -> None:
  """Integers of any type, 0 to classes - 1."""
  if len(bad := np.flatnonzero((labels_N < 0) | (labels_N >= classes))):
    raise UserError(
      f"data: {name}: label {labels_N[bad[0]]} of example {bad[0]} is out of range;"
      f" there are {classes} classes, 0 to {classes - 1}"
    )


def alike(sources: list[Source]) -> None:
  """The splits of one dataset have the same entries, shapes, types and classes."""
  first = sources[0]
  for source in sources[1:]:
    for name, feature in first.schema.features.items():
      if source.schema.features.get(name) != feature:
        raise UserError(
          f"data: {first.name} has {name} of {feature.dtype}{feature.shape} but {source.name} has"
          f" {source.schema.features.get(name, 'none')}"
        )
    if source.schema.class_names != first.schema.class_names:
      raise UserError(f"data: {first.name} and {source.name} have different class names")


def finite(name: str, columns: tuple[str, ...], values_ND: np.ndarray) -> None:
  """No NaN or infinity in a table (N, D) of floats whose columns are named."""
  if not np.isfinite(values_ND).all():
    example, column = np.argwhere(~np.isfinite(values_ND))[0]
    value = "NaN" if np.isnan(values_ND[example, column]) else "infinite"
    raise UserError(f"data: {name}: column {columns[column]!r} of example {example} is {value}; it must be finite")


def empty_classes(source: Source) -> list[str]:
  """Names of the classes of which there is no example: allowed, but worth saying."""
  if source.schema.output != "label":
    return []
  counts = np.bincount(source.column("label"), minlength=len(source.schema.class_names))
  return [name for name, count in zip(source.schema.class_names, counts, strict=True) if count == 0]
