"""folder:DIRECTORY, one folder of pictures for each class; or train, test and validation folders of such folders.

Pictures must have one size; nothing is resized. Decoded once into the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from research import nearest
from research.data import cache, fingerprint, pictures
from research.data.source import SPLIT_NAMES, ArraySource, Dataset, Feature, Options, Schema
from research.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_DECODER = "folder 1"  # part of the fingerprint: raise it when the same files would give other arrays


def open_dataset(rest: str, options: Options) -> Dataset:
  """"image" (H, W, 1) where every picture is grey, else (H, W, 3); "label" by the sorted class folders' names, those of
  all splits together. Folders inside a class are looked through; hidden files and other suffixes are passed over."""
  root = nearest.existing(rest, "folder")
  parts = {part: _classes(folder) for part, folder in _part_folders(root).items()}
  class_names = tuple(sorted({name for classes in parts.values() for name in classes}))
  listed = [
    (part, path, class_names.index(name))
    for part, classes in parts.items()
    for name in sorted(classes)
    for path in sorted(_pictures(classes[name]))
  ]
  if not listed:
    raise UserError(f"data: folder:{rest} has class folders {', '.join(class_names[:8])} but no pictures in them")
  names = [path.relative_to(root).as_posix() for _, path, _ in listed]
  content = fingerprint.text(_DECODER, fingerprint.files(root, names, options.cache_dir), *class_names)

  def begin():
    shape = _shape(root, names)
    features = {"image": Feature(shape, "uint8"), "label": Feature((), "int32")}

    def decode(indices: range) -> dict[str, np.ndarray]:
      images = [pictures.decoded(root / names[i], shape, str(root / names[i]), str(root / names[0])) for i in indices]
      return {"image": np.stack(images), "label": np.array([listed[i][2] for i in indices], np.int32)}

    return features, decode

  arrays = cache.decode_once(f"folder:{rest}", content, len(listed), begin, options.cache_dir, options.progress)
  schema = Schema({key: Feature(array.shape[1:], array.dtype.name) for key, array in arrays.items()}, class_names)
  sources, start = {}, 0
  for part in parts:  # the listing's order, so each part is one stretch
    stop = start + sum(listed_part == part for listed_part, _, _ in listed)
    name = f"folder:{rest}" if part == "all" else f"folder:{rest} ({part})"
    stretch = {key: array[start:stop] for key, array in arrays.items()}
    sources[part] = ArraySource(name, schema, stretch, fingerprint.text(content, start, stop))
    start = stop
  return Dataset(sources)


def _part_folders(root: Path) -> dict[str, Path]:
  """Split folders where DIRECTORY/train holds folders; else the directory itself, as "all"."""
  inside = {path.name: path for path in _folders(root)}
  if "train" not in inside or not any(_folders(inside["train"])):
    return {"all": root}
  parts = {}
  for name, path in sorted(inside.items()):
    if name not in SPLIT_NAMES:
      raise UserError(f"data: {path} beside a train folder is not a split{nearest.hint(name, SPLIT_NAMES)}")
    if SPLIT_NAMES[name] in parts:
      raise UserError(f"data: {path} and {parts[SPLIT_NAMES[name]]} are both a {SPLIT_NAMES[name]} split")
    parts[SPLIT_NAMES[name]] = path
  return parts


def _classes(folder: Path) -> dict[str, Path]:
  classes = {path.name: path for path in _folders(folder)}
  if not classes:
    flat = any(path.suffix.lower() in _SUFFIXES for path in folder.iterdir())
    what = "holds pictures but no class folders" if flat else "holds no class folders"
    raise UserError(f"data: {folder} {what}; pictures go into {folder}/CLASS/, one folder for each class")
  return classes


def _folders(folder: Path) -> Iterator[Path]:
  return (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
  """Everything below, through symbolic links too, each folder once, so that a link to a parent ends."""
  seen = set()
  for place, folders, files in os.walk(folder, followlinks=True):
    if (real := os.path.realpath(place)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    shown = (name for name in files if not name.startswith("."))
    yield from (Path(place, name) for name in shown if Path(name).suffix.lower() in _SUFFIXES)


def _shape(root: Path, names: list[str]) -> tuple[int, int, int]:
  """The first picture's size, with one channel if all are grey, from the headers alone; decoding compares the sizes."""
  shapes = (pictures.shape(root / name, str(root / name)) for name in names)
  height, width, channels = next(shapes)
  return height, width, max([channels, *(other[2] for other in shapes)])
