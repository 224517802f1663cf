"""URI schemes and the module that opens each. A new kind is one file with an `open_dataset`, and a line here."""

from __future__ import annotations

import importlib

from research import nearest
from research.data.source import Dataset, Options
from research.errors import UserError

# Modules are named, not imported: a machine without a kind's libraries still opens the other kinds.
SCHEMES = {
  "tfds": "research.data.tfds_source",  # tfds:NAME[/CONFIG][:SPLIT], prepared under data_dir
  "sklearn": "research.data.sklearn_source",  # sklearn:digits
  "idx": "research.data.idx",  # idx:DIRECTORY of MNIST-style files
  "folder": "research.data.folder",  # folder:DIRECTORY of one folder of images for each class
  "npz": "research.data.npz",  # npz:FILE of arrays
  "csv": "research.data.csv_table",  # csv:FILE, a table
  "synthetic": "research.data.synthetic",  # synthetic:NAME?option=value
}


def open_dataset(uri: str, options: Options) -> Dataset:
  """The dataset at `uri`, SCHEME:REST. Raises UserError, with the nearest scheme, for one that is not known,
  and for a target given to anything but a table."""
  scheme, colon, rest = uri.partition(":")
  if not colon or not rest:
    raise UserError(f"data: source {uri!r} is not SCHEME:NAME, such as sklearn:digits{_hint(scheme, uri)}")
  if scheme not in SCHEMES:
    raise UserError(f"data: no kind of source {scheme!r} in {uri!r}{nearest.hint(scheme, SCHEMES)}")
  if options.target and scheme != "csv":
    raise UserError(f"data: target {options.target!r} is for csv sources; {uri} brings its own outputs")
  return importlib.import_module(SCHEMES[scheme]).open_dataset(rest, options)


def _hint(scheme: str, uri: str) -> str:
  if scheme in SCHEMES:
    return f"; nothing follows {scheme!r}"
  return f" (did you mean sklearn:{uri}?)" if uri in ("digits", "iris", "breast_cancer", "wine", "diabetes") else ""
