"""What a dataset is once it is open: examples by number, a schema, and a fingerprint of the content.

Nothing here reads files, shuffles or batches; order and feeds do that on top of `gather`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from research.data import fingerprint as fingerprints

Array = Any  # a numpy or a jax array
OUTPUTS = ("label", "target")  # "label": a class number, int32; "target": a number to regress, float32


@dataclasses.dataclass(frozen=True)
class Feature:
  """Shape and numpy dtype name of one example's entry, without the batch axis."""

  shape: tuple[int, ...]
  dtype: str

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Schema:
  """Inputs: "image" (H, W, C) uint8 or "features" (D,) float32. Outputs: "label" () int32 or "target" () float32."""

  features: Mapping[str, Feature]
  class_names: tuple[str, ...] = ()  # empty for regression
  feature_names: tuple[str, ...] = ()  # the columns of "features", where they are known

  @property
  def output(self) -> str:
    """The name of what is predicted: "label" or "target"."""
    return next(name for name in OUTPUTS if name in self.features)

  @property
  def example_bytes(self) -> int:
    """Bytes of one example: what a device-residency budget is compared with, times `size`."""
    return sum(feature.nbytes for feature in self.features.values())


# The words that sources use for their splits, and ours.
SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


class Source(Protocol):
  """`size` examples, numbered from 0. `fingerprint` is a hex sha-256 that is equal wherever the content is equal."""

  name: str
  size: int
  schema: Schema
  fingerprint: str

  def gather(self, indices) -> dict[str, np.ndarray]:
    """Examples `indices`, ints of any shape S: entries are S + feature.shape. IndexError outside 0..size-1."""

  def column(self, name: str) -> np.ndarray:
    """All examples' entries under `name`, (N, ...). The stored array itself where possible: do not write to it."""

  @property
  def nbytes(self) -> int:
    """Bytes of what `stored` gives."""

  def stored(self) -> Mapping[str, np.ndarray]:
    """What a device holds of the whole source."""

  def take(self, stored: Mapping[str, Array], indices: Array) -> dict[str, Array]:
    """Examples `indices` from what `stored` gave, in numpy or inside a compiled step; indices are not checked."""


class Rows:
  """How a source whose examples are stored one by one gives them to a device."""

  size: int
  schema: Schema

  @property
  def nbytes(self) -> int:
    return self.size * self.schema.example_bytes

  def stored(self) -> Mapping[str, np.ndarray]:
    return {name: self.column(name) for name in self.schema.features}

  def take(self, stored: Mapping[str, Array], indices: Array) -> dict[str, Array]:
    return {name: array[indices] for name, array in stored.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource(Rows):
  """Numpy arrays or memory maps, one for each entry of the schema, all with the examples on axis 0."""

  name: str
  schema: Schema
  arrays: Mapping[str, np.ndarray]
  fingerprint: str

  def __post_init__(self):
    if set(self.arrays) != set(self.schema.features):
      raise ValueError(f"{self.name}: arrays {sorted(self.arrays)} for a schema of {sorted(self.schema.features)}")
    sizes = {len(array) for array in self.arrays.values()}
    if len(sizes) != 1:
      raise ValueError(f"{self.name}: arrays of different lengths {sorted(sizes)}")
    for name, feature in self.schema.features.items():
      array = self.arrays[name]
      if array.shape[1:] != feature.shape or array.dtype != np.dtype(feature.dtype):
        raise ValueError(f"{self.name}: {name} is {array.dtype}{array.shape[1:]}, its schema says {feature}")

  @property
  def size(self) -> int:
    return len(next(iter(self.arrays.values())))

  def gather(self, indices) -> dict[str, np.ndarray]:
    indices = checked_indices(indices, self.size)
    return {name: array[indices] for name, array in self.arrays.items()}

  def column(self, name: str) -> np.ndarray:
    return self.arrays[name]


class View(Rows):
  """Some examples of another source, in the given order: a split. `indices_N` may repeat and need not be sorted."""

  def __init__(self, source: Source, indices_N, name: str = ""):
    indices_N = checked_indices(indices_N, source.size)
    if indices_N.ndim != 1:
      raise ValueError(f"a view takes a list of example numbers, not shape {indices_N.shape}")
    self.fingerprint = fingerprints.text(
      "view", source.fingerprint, fingerprints.arrays({"indices": indices_N.astype(np.int64)})
    )
    if isinstance(source, View):  # one level of indirection, however often a set is divided
      source, indices_N = source.source, source.indices_N[indices_N]
    self.source, self.indices_N = source, indices_N
    self.name, self.schema, self.size = name or source.name, source.schema, len(indices_N)

  def gather(self, indices) -> dict[str, np.ndarray]:
    return self.source.gather(self.indices_N[checked_indices(indices, self.size)])

  def column(self, name: str) -> np.ndarray:
    return self.source.column(name)[self.indices_N]


def checked_indices(indices, size: int) -> np.ndarray:
  """`indices` as an integer array within 0..size-1. Numpy's wrap-around would hide an off-by-one."""
  indices = np.asarray(indices)
  if indices.size == 0:
    return indices.astype(np.int64)
  if not np.issubdtype(indices.dtype, np.integer):
    raise TypeError(f"example numbers are integers, not {indices.dtype}")
  if indices.min() < 0 or indices.max() >= size:
    raise IndexError(f"example numbers {indices.min()}..{indices.max()} are outside 0..{size - 1}")
  return indices


Encode = Callable[[Source], Source]


@dataclasses.dataclass(frozen=True)
class Options:
  """What the flags say about opening, for every kind of source; a kind takes what concerns it."""

  data_dir: str = ""
  cache_dir: str = ""
  target: str = ""
  progress: Callable[[str], None] = lambda line: None  # told once of anything that takes long


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What opening a URI gives: splits under "train", "test", "validation", or the whole set alone under "all".

  `fit`, where there is one, learns from the training split how raw columns become features (see table.py).
  """

  parts: Mapping[str, Source]
  fit: Callable[[Source], Encode] | None = None
  notes: tuple[str, ...] = ()  # choices made for the user, worth one line each
