"""npz:FILE, arrays from numpy.savez. Pickled objects are refused, and a header is not believed before it is checked."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from research import nearest
from research.data import check, fingerprint, table
from research.data.source import SPLIT_NAMES, ArraySource, Dataset, Feature, Options, Schema
from research.errors import UserError

_INPUTS = ("x", "image", "images", "features", "data")
_OUTPUTS = ("y", "label", "labels", "target", "targets")
_SPLIT = "|".join(SPLIT_NAMES)

Arrays = dict[str, np.ndarray]


def open_dataset(rest: str, options: Options) -> Dataset:
  """One input array (x, image, features or data) and one output (y, label or target); or such a pair for each split,
  as x_train, y_train or train_images, train_labels. Optional: class_names, feature_names.

  Inputs (N, H, W) or (N, H, W, C) of integers 0..255 are images; (N, D) or (N,) are features, standardised. A `label`
  is a class number or a text, a `target` a number to regress, and `y` is a target only if it is of a float type.
  """
  name, arrays = f"npz:{rest}", _load(nearest.existing(rest, "file"))
  parts, extra = _pairs(name, arrays)
  read = {part: (_input(name, *pair[0]), _output(name, *pair[1])) for part, pair in parts.items()}
  for part, (input_N, output_N) in read.items():
    if len(input_N) != len(output_N):
      raise UserError(f"data: {name}: {len(input_N)} inputs but {len(output_N)} outputs ({part})")
  class_names = _class_names(name, {part: output for part, (_, output) in read.items()}, extra)
  if class_names:
    read = {part: (x, _numbered(name, y, class_names)) for part, (x, y) in read.items()}
  shapes = {part: input_N.shape[1:] for part, (input_N, _) in read.items()}
  if len(set(shapes.values())) > 1:
    raise UserError(f"data: {name}: the splits' inputs have different shapes: {shapes}")
  if next(iter(read.values()))[0].ndim == 2:
    width = next(iter(shapes.values()))[0]
    columns = extra.get("feature_names", [f"x{number}" for number in range(width)])
    if len(columns) != width:
      raise UserError(f"data: {name}: {len(columns)} feature_names for {width} columns")
    return table.numeric_dataset(name, [str(column) for column in columns], read, class_names)
  return Dataset({part: _image_source(name, part, x, y, class_names) for part, (x, y) in read.items()})


def _pairs(name: str, arrays: Arrays) -> tuple[dict[str, tuple], Arrays]:
  """{split: ((key, input), (key, output))} and the arrays that are neither."""
  found: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
  extra = {}
  for key, array in arrays.items():
    match = re.fullmatch(rf"(?:({_SPLIT})_)?(\w+?)(?:_({_SPLIT}))?", key.lower())
    before, word, after = match.groups() if match else (None, None, None)
    role = "input" if word in _INPUTS else "output" if word in _OUTPUTS else None
    if role is None or (before and after):
      extra[key] = array
      continue
    part = found.setdefault(SPLIT_NAMES.get(before or after, "all"), {})
    if role in part:
      raise UserError(f"data: {name} has both {part[role][0]} and {key}; one of them is the {role}")
    part[role] = (word, array)
  incomplete = [part for part, pair in found.items() if len(pair) != 2]
  if not found or incomplete or ("all" in found and len(found) > 1) or ("all" not in found and "train" not in found):
    has = ", ".join(arrays) or "nothing"
    raise UserError(f"data: {name} holds {has}; needed are x and y, or x_train, y_train, x_test and y_test")
  return {part: (pair["input"], pair["output"]) for part, pair in found.items()}, extra


def _input(name: str, key: str, array: np.ndarray) -> np.ndarray:
  """(N, D) float64, or (N, H, W, C) uint8."""
  if array.dtype.kind not in "iufb":
    raise UserError(f"data: {name}: {key} is of type {array.dtype}, not numbers")
  if array.ndim in (1, 2):
    return (array if array.ndim == 2 else array[:, None]).astype(np.float64)
  if array.ndim not in (3, 4):
    raise UserError(f"data: {name}: {key} has shape {array.shape}; needed is (N, D), (N, H, W) or (N, H, W, C)")
  image_NHWC = array if array.ndim == 4 else array[..., None]
  if image_NHWC.shape[1] in (1, 3) and image_NHWC.shape[3] > 4:
    raise UserError(f"data: {name}: {key} has shape {array.shape}, channels first; transpose it to (N, H, W, C)")
  if image_NHWC.dtype == np.uint8:
    return image_NHWC
  with np.errstate(invalid="ignore"):
    whole = np.isfinite(image_NHWC) & (image_NHWC >= 0) & (image_NHWC <= 255) & (np.floor(image_NHWC) == image_NHWC)
  if not whole.all():
    example = np.argwhere(~whole)[0]
    raise UserError(
      f"data: {name}: {key} has pixel {image_NHWC[tuple(example)]} in example {example[0]}; images hold whole numbers"
      " 0 to 255 (store them as uint8)"
    )
  return image_NHWC.astype(np.uint8)


def _output(name: str, key: str, array: np.ndarray) -> np.ndarray:
  """(N,): whole numbers (int64), texts, or float64 for a regression."""
  if array.ndim == 2 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim != 1:
    raise UserError(f"data: {name}: {key} has shape {array.shape}; needed is one output for each example, (N,)")
  kind = array.dtype.kind
  if key.startswith("target") and kind in "iufb":
    return array.astype(np.float64)
  if kind == "U":
    return array
  if kind == "f" and key.startswith("label"):
    whole = np.isfinite(array) & (np.floor(array) == array)
    if not whole.all():
      example = int(np.argmin(whole))
      raise UserError(f"data: {name}: label {array[example]} of example {example} is not a class number")
    return array.astype(np.int64)
  if kind in "iub":
    return array.astype(np.int64)  # a uint64 beyond it turns negative: out of range all the same
  if kind == "f":
    return array.astype(np.float64)
  raise UserError(f"data: {name}: {key} is of type {array.dtype}, not numbers or text")


def _class_names(name: str, outputs: Arrays, extra: Arrays) -> tuple[str, ...]:
  kinds = {output.dtype.kind for output in outputs.values()}
  if len(kinds) > 1:
    raise UserError(f"data: {name}: the splits' outputs are of different types")
  if kinds == {"f"}:
    return ()
  if "class_names" in extra:
    return tuple(str(class_name) for class_name in extra["class_names"].ravel())
  if kinds == {"U"}:
    return tuple(sorted({str(text) for output in outputs.values() for text in output}))
  return table.class_names_of(outputs.get("train", outputs.get("all")), name)


def _numbered(name: str, output_N: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
  if output_N.dtype.kind != "U":
    return output_N
  numbers = {class_name: number for number, class_name in enumerate(class_names)}
  if unknown := [text for text in output_N.tolist() if text not in numbers]:
    raise UserError(f"data: {name}: label {unknown[0]!r} is not in class_names{nearest.hint(unknown[0], class_names)}")
  return np.array([numbers[text] for text in output_N.tolist()], np.int64)


def _image_source(name: str, part: str, image_NHWC: np.ndarray, output_N: np.ndarray, class_names) -> ArraySource:
  title = name if part == "all" else f"{name} ({part})"
  output, dtype = ("label", np.int32) if class_names else ("target", np.float32)
  if class_names:
    check.labels(title, output_N, len(class_names))
  arrays = {"image": image_NHWC, output: output_N.astype(dtype)}
  features = {key: Feature(array.shape[1:], array.dtype.name) for key, array in arrays.items()}
  content = fingerprint.arrays({**arrays, "classes": np.array(class_names, "U")})
  return ArraySource(title, Schema(features, class_names), arrays, content)


def _load(path: Path) -> Arrays:
  arrays = {}
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.infolist():
        if member.filename.endswith(".npy"):
          key = member.filename.removesuffix(".npy")
          with archive.open(member) as stream:
            _check_header(path, key, stream, member.file_size)
          with archive.open(member) as stream:
            arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError) as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(f"data: {path} is truncated, damaged or not an npz file: {reason}") from error
  return arrays


def _check_header(path: Path, key: str, stream, size: int) -> None:
  """Refuses objects, and a shape that claims more than the member holds, before any memory is set aside for it."""
  version = np.lib.format.read_magic(stream)
  readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  if version not in readers:
    raise UserError(f"data: {path}: {key} has npy format {version}; plain arrays have (1, 0) or (2, 0)")
  shape, _, dtype = readers[version](stream)
  if dtype.hasobject:
    raise UserError(f"data: {path}: {key} holds pickled objects, which can run code; save it as numbers or text")
  if (claimed := math.prod(shape) * dtype.itemsize) != (held := size - stream.tell()):
    raise UserError(f"data: {path}: {key} claims {shape} of {dtype}, {claimed} bytes, but holds {held}")
