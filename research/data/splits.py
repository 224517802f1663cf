"""One URI in, training, validation and test splits out: given ones as they are, otherwise divided by a seed.

Dividing depends on (labels, fractions, seed) alone. It draws from Philox's raw bits, which numpy keeps fixed, so that a
split is the same on every machine and numpy version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from research.data import cache, check, registry
from research.data import fingerprint as fingerprints
from research.data.source import Dataset, Options, Source, View
from research.errors import UserError

_PURPOSES = {"test": 1, "validation": 2}


@dataclasses.dataclass(frozen=True)
class Splits:
  """`validation` and `test` are None where none was given or asked for. `fingerprint` covers content and division.

  `target_mean` and `target_std` describe the training split's raw targets (regression only).
  `notes` are lines worth showing the user: classes without examples, choices made about a table's columns.
  """

  train: Source
  validation: Source | None
  test: Source | None
  fingerprint: str
  target_mean: float | None = None
  target_std: float | None = None
  notes: tuple[str, ...] = ()

  def keep(self, workdir: Path) -> None:
    """Writes what a run needs to use its model later and cannot learn again from the flags: nothing here."""

  @property
  def about(self) -> dict[str, str]:
    """What run.json says of what `keep` writes, by its name."""
    return {}

  def check_origin(self, run: Path) -> None:
    """Raises UserError where the model of another run cannot read these examples: never, here."""


def open_splits(
  uri: str,
  *,
  data_dir: str = "",
  cache_dir: str = "",
  target: str = "",
  validation_fraction: float = 0.0,
  test_fraction: float = 0.2,
  split_seed: int = 0,
  progress: Callable[[str], None] = lambda line: None,
) -> Splits:
  """Opens `uri` (see registry.py for the kinds).

  A fraction speaks only of a split that the source does not bring. `test_fraction` is taken first, and only where the
  source brings neither a test nor a validation split; then `validation_fraction` of what is left for training. Both
  are stratified by label, by largest remainders, so each class is within one example of its share; targets of a
  regression are divided at random. 0 leaves a split out.

  Args:
    data_dir: where TFDS sets are prepared; "" is TFDS's own default.
    cache_dir: where decoded images are kept; "" is $XDG_CACHE_HOME/flagship or ~/.cache/flagship.
    target: for csv, COLUMN, COLUMN:class or COLUMN:number.
    progress: told a line before anything that takes long.

  Raises:
    UserError: an unknown or broken source, invalid content, or a split that would be empty.
  """
  options = Options(data_dir, str(cache.directory(cache_dir)), target, progress)
  return splits_of(
    lambda: registry.open_dataset(uri, options),
    validation_fraction=validation_fraction,
    test_fraction=test_fraction,
    split_seed=split_seed,
  )


def splits_of(
  open_dataset: Callable[[], Dataset], *, validation_fraction: float, test_fraction: float, split_seed: int
) -> Splits:
  """What `open_splits` does with the dataset that `open_dataset` gives, once the fractions are known to be possible."""
  for name, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
    if not 0 <= fraction < 1:
      raise UserError(f"data: {name} is {fraction}; it must be at least 0 and below 1")
  if not 0 <= split_seed < 2**63:
    raise UserError(f"data: split_seed is {split_seed}; it must be between 0 and 2**63 - 1")
  dataset = open_dataset()
  for part in dataset.parts.values():
    check.outputs(part)
  check.alike(list(dataset.parts.values()))

  parts = dict(dataset.parts)
  train = parts.pop("all", None) or parts.pop("train")
  if not parts and test_fraction > 0:
    train, parts["test"] = divide(train, "test", test_fraction, split_seed)
  if "validation" not in parts and validation_fraction > 0:
    train, parts["validation"] = divide(train, "validation", validation_fraction, split_seed)
  raw = {"train": train, **parts}
  fingerprint = fingerprints.text("splits", *[f"{name}:{raw[name].fingerprint}" for name in sorted(raw)])

  encode = dataset.fit(train) if dataset.fit else lambda source: source
  encoded = {name: encode(source) for name, source in raw.items()}
  notes = list(dataset.notes)
  for name, source in encoded.items():
    if empty := check.empty_classes(source):
      notes.append(f"the {name} split has no example of {len(empty)} of its classes: {_listed(empty)}")
  mean = std = None
  if train.schema.output == "target":
    target_N = train.column("target").astype(np.float64)
    mean, std = float(target_N.mean()), float(target_N.std())
  return Splits(
    encoded["train"], encoded.get("validation"), encoded.get("test"), fingerprint, mean, std, tuple(notes)
  )


def divide(source: Source, name: str, fraction: float, seed: int) -> tuple[Source, Source]:
  """Takes round(fraction * size) examples out of `source`, halves rounding up: (the rest, the part taken), both in the
  source's order. Raises UserError if either would be empty."""
  taken = int(np.floor(fraction * source.size + 0.5))
  if taken == 0 or taken == source.size:
    empty = name if taken == 0 else "training"
    raise UserError(
      f"data: {name}_fraction={fraction:g} of {source.name}'s {source.size} examples leaves an empty {empty} split;"
      f" --data.{name}_fraction=0 takes none"
    )
  labels_N = source.column("label") if source.schema.output == "label" else np.zeros(source.size, np.int32)
  is_taken_N = stratified(labels_N, taken, np.random.Philox(key=[seed, _PURPOSES[name]]))
  rest = View(source, np.flatnonzero(~is_taken_N), _named(source, "train"))
  return rest, View(source, np.flatnonzero(is_taken_N), _named(source, name))


def stratified(labels_N: np.ndarray, taken: int, bits: np.random.Philox) -> np.ndarray:
  """Which `taken` of the N examples to take, (N,) bool, class by class.

  A class of n examples gives floor(taken * n / N); the places left go to the classes with the largest remainders,
  lower classes first among equals. Within a class, those with the smallest of N raw 64-bit draws are taken.
  """
  order_N = np.lexsort((bits.random_raw(len(labels_N)), labels_N))  # by class, then by draw
  _, starts, counts = np.unique(labels_N[order_N], return_index=True, return_counts=True)
  products = taken * counts.astype(np.int64)
  shares, remainders = products // len(labels_N), products % len(labels_N)
  largest = np.argsort(-remainders, kind="stable")[: taken - shares.sum()]
  shares[largest] += 1
  is_taken_N = np.zeros(len(labels_N), bool)
  for start, share in zip(starts, shares, strict=True):
    is_taken_N[order_N[start : start + share]] = True
  return is_taken_N


def _named(source: Source, part: str) -> str:
  return f"{source.name.removesuffix(' (train)')} ({part})"


def _listed(names: list[str], limit: int = 10) -> str:
  return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
