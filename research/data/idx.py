"""idx:DIRECTORY, MNIST-style IDX files, raw or gzipped: train-images-idx3-ubyte[.gz] and the three that go with it."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from research import nearest
from research.data import fingerprint, table
from research.data.source import ArraySource, Dataset, Feature, Options, Schema
from research.errors import UserError

_PREFIXES = {"train": "train", "test": "t10k"}


def open_dataset(rest: str, options: Options) -> Dataset:
  """"image" (H, W, 1) uint8 and "label"; classes are the numbers up to the largest training label. The t10k pair may
  be absent. Raises UserError for a missing, truncated or oversized file, or counts that disagree."""
  folder = nearest.existing(rest, "folder")
  read = {}
  for part, prefix in _PREFIXES.items():
    images, labels = (_found(folder, prefix, kind, axes) for kind, axes in (("images", 3), ("labels", 1)))
    if part == "test" and images is None and labels is None:
      continue
    for path, kind, axes in ((images, "images", 3), (labels, "labels", 1)):
      if path is None:
        has = sorted(found.name for found in folder.iterdir())[:8]
        wanted = f"{prefix}-{kind}-idx{axes}-ubyte[.gz]"
        raise UserError(f"data: no {wanted} in {folder} (there: {', '.join(has) or 'nothing'})")
    image_NHW, label_N = _read(images, 3), _read(labels, 1)
    if len(image_NHW) != len(label_N):
      raise UserError(f"data: {images} has {len(image_NHW)} images but {labels.name} has {len(label_N)} labels")
    read[part] = {"image": image_NHW[..., None], "label": label_N.astype(np.int32)}
  class_names = table.class_names_of(read["train"]["label"], f"idx:{rest} (train)")
  sources = {}
  for part, arrays in read.items():
    features = {"image": Feature(arrays["image"].shape[1:], "uint8"), "label": Feature((), "int32")}
    content = fingerprint.arrays(arrays)
    sources[part] = ArraySource(f"idx:{rest} ({part})", Schema(features, class_names), arrays, content)
  return Dataset(sources)


def _found(folder: Path, prefix: str, kind: str, axes: int) -> Path | None:
  names = [f"{prefix}-{kind}{joint}idx{axes}-ubyte{suffix}" for joint in "-." for suffix in ("", ".gz")]
  return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(path: Path, axes: int) -> np.ndarray:
  """An array of uint8 with `axes` axes: two zero bytes, type 8, axis count, big-endian sizes, values."""
  try:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
      header = stream.read(4 + 4 * axes)
      if len(header) < 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"data: {path} is not an IDX file of {axes}-axis uint8: it begins {header[:4].hex(' ')}")
      shape = struct.unpack(f">{axes}I", header[4:])
      content = bytearray()  # grows with the file: the header's sizes are not yet believed
      while len(content) <= math.prod(shape) and (piece := stream.read(1 << 24)):
        content += piece
  except (EOFError, zlib.error, OSError) as error:
    raise UserError(f"data: {path} is truncated or damaged: {error}") from error
  if len(content) != math.prod(shape):
    more = "fewer" if len(content) < math.prod(shape) else "more"
    raise UserError(f"data: {path} is damaged: its header says {shape}, {math.prod(shape)} bytes; it holds {more}")
  return np.frombuffer(content, np.uint8).reshape(shape)
