"""tfds:NAME[/CONFIG][/VERSION][:SPLIT], sets prepared by TensorFlow Datasets as array_record files, with no TensorFlow.

Nothing is downloaded or prepared here: an error says which folder was looked in and which command prepares it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from research import nearest
from research.data import cache, fingerprint, pictures, table
from research.data.source import SPLIT_NAMES, ArraySource, Dataset, Feature, Options, Schema, Source
from research.errors import UserError

_DECODER = "tfds 1"  # part of the fingerprint: raise it when the same files would give other arrays


def open_dataset(rest: str, options: Options) -> Dataset:
  """Images (equal sizes, uint8) with a class label, decoded once into the cache; or a vector of numbers with a label
  or target, standardised. Without SPLIT: the set's own train, test and validation. With it (TFDS's own words, such as
  train[:10%]): that part alone, to be divided. Splits under other names are left out."""
  name, _, split = rest.partition(":")
  if options.data_dir:
    nearest.existing(options.data_dir, "folder")
  folder = prepared_folder(name, data_directory(options.data_dir))
  builder = open_builder(folder)
  parts = {"all": split} if split else {SPLIT_NAMES[own]: own for own in builder.info.splits if own in SPLIT_NAMES}
  if "train" not in parts and "all" not in parts:
    raise UserError(
      f"data: tfds:{name} has no train split; name one: {', '.join(f'tfds:{name}:{s}' for s in builder.info.splits)}"
    )
  return _Reader(f"tfds:{name}", folder, builder, options).dataset(parts)


def data_directory(data_dir: str) -> Path:
  """`data_dir`, or where it is empty TFDS's own default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_folder(name: str, root: Path) -> Path:
  """ROOT/NAME[/CONFIG]/VERSION, the newest version where none is named. Raises UserError where it is not prepared."""
  folder = root / name
  if not re.fullmatch(r"[\w\-.+/]+", name) or ".." in name or name.startswith("/"):
    raise UserError(f"data: 'tfds:{name}' is not a dataset's name; it is NAME, NAME/CONFIG or NAME/CONFIG/VERSION")
  if (folder / "dataset_info.json").is_file():
    return folder
  versions = sorted(
    (tuple(map(int, path.name.split("."))), path)
    for path in (folder.iterdir() if folder.is_dir() else ())
    if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
  )
  if versions:
    return versions[-1][1]
  raise UserError(_not_prepared(name, root))


def _not_prepared(name: str, root: Path) -> str:
  prepared = sorted({path.parts[len(root.parts)] for path in root.glob("*/**/dataset_info.json")})
  base = name.split("/")[0]
  if base in prepared:
    inside = sorted({str(path.parent.parent.relative_to(root)) for path in root.glob(f"{base}/**/dataset_info.json")})
    return f"data: no 'tfds:{name}' in {root}{nearest.hint(name, inside)}"
  known = _known_names()
  if known and base not in known:
    near = [hint for names in (prepared, known) if "did you mean" in (hint := nearest.hint(base, names))]
    there = ", ".join(prepared) or "none"
    return f"data: no dataset 'tfds:{base}'{near[0] if near else ''}; prepared in {root}: {there}"
  return (
    f"data: 'tfds:{base}' is not prepared in {root} (prepared there: {', '.join(prepared) or 'none'}); where TensorFlow"
    f" and a network are: tfds build {name} --data_dir={root} --file_format=array_record; or name another data.dir"
  )


def _known_names() -> list[str]:
  """Names of the datasets TFDS can prepare; community ones would need a network."""
  return library().list_builders(with_community_datasets=False)


def library():
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      f"data: tfds: sources need tensorflow-datasets, array_record and importlib_resources ({error});"
      " pip install tensorflow-datasets array_record importlib_resources"
    ) from error
  return tfds


def open_builder(folder: Path):
  """From the folder alone: the set's own code might want TensorFlow, and other features than the files have."""
  tfds = library()
  try:
    builder = tfds.builder_from_directory(str(folder))
  except Exception as error:
    raise UserError(f"data: {folder} is not a prepared dataset that TFDS reads: {_line(error)}") from error
  if builder.info.file_format.value != "array_record":
    raise UserError(
      f"data: {folder} holds {builder.info.file_format.value} files, which need TensorFlow; convert them once:"
      f" tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    )
  return builder


class _Reader:
  """Reads the splits of one prepared folder."""

  def __init__(self, name: str, folder: Path, builder, options: Options):
    self.name, self.folder, self.builder, self.options = name, folder, builder, options
    self.features = dict(builder.info.features.items())
    tfds = library()
    self.input = self._only("image", tfds.features.Image) or self._only("features", tfds.features.Tensor)
    self.output = self._only("label", tfds.features.ClassLabel) or self._only("target", tfds.features.Scalar)
    if not (self.input and self.output):
      has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in self.features.items())
      raise UserError(f"data: {name} has {has}; needed is one image or vector of numbers, and one label or target")
    self.is_image = isinstance(self.features[self.input], tfds.features.Image)
    self.class_names = tuple(getattr(self.features[self.output], "names", None) or ())

  def _only(self, usual: str, kind: type) -> str | None:
    """The key of the feature of a kind: the only one, or the one under its usual name."""
    keys = [key for key, feature in self.features.items() if isinstance(feature, kind)]
    return usual if usual in keys else keys[0] if len(keys) == 1 else None

  def dataset(self, parts: dict[str, str]) -> Dataset:
    if self.is_image:
      return Dataset({part: self._images(split) for part, split in parts.items()})
    read = {part: self._vectors(split) for part, split in parts.items()}
    width = next(iter(read.values()))[0].shape[1]
    columns = [f"{self.input}_{number}" for number in range(width)]
    return table.numeric_dataset(self.name, columns, read, self.class_names)

  def _records(self, split: str):
    """A sequence of examples; pictures still encoded, so that decoding can be spread over threads."""
    skip = library().decode.SkipDecoding()
    others = {key: feature for key, feature in self.features.items() if key != self.output}
    try:
      decoders = {key: skip for key, feature in others.items() if not hasattr(feature, "items")}
      return self.builder.as_data_source(split, decoders=decoders)
    except Exception as error:
      raise UserError(
        f"data: cannot open {self.name}:{split}: {_line(error)}{nearest.hint(split, self.builder.info.splits)}"
      ) from error

  def _fetch(self, records, indices: range) -> list[dict]:
    try:
      return records.__getitems__(list(indices))
    except Exception as error:
      raise UserError(f"data: {self.name} in {self.folder} is damaged: {_line(error)}") from error

  def _images(self, split: str) -> Source:
    records, name = self._records(split), f"{self.name}:{split}"
    if len(records) == 0:
      raise UserError(f"data: {name} is empty; a split needs at least one example")
    output, feature = ("label", Feature((), "int32")) if self.class_names else ("target", Feature((), "float32"))

    def begin():
      first = self._fetch(records, range(1))[0][self.input]
      height, width, channels = pictures.shape(first, f"{name} example 0")
      shape = (height, width, self.features[self.input].shape[-1] or channels)

      def decode(indices: range) -> dict[str, np.ndarray]:
        examples = self._fetch(records, indices)
        images = [
          pictures.decoded(example[self.input], shape, f"{name} example {index}", "example 0")
          for index, example in zip(indices, examples, strict=True)
        ]
        return {"image": np.stack(images), output: np.array([e[self.output] for e in examples], feature.dtype)}

      return {"image": Feature(shape, "uint8"), output: feature}, decode

    content = self._fingerprint(split)
    arrays = cache.decode_once(name, content, len(records), begin, self.options.cache_dir, self.options.progress)
    features = {key: Feature(array.shape[1:], array.dtype.name) for key, array in arrays.items()}
    return ArraySource(name, Schema(features, self.class_names), arrays, content)

  def _vectors(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    records = self.builder.as_data_source(split)
    examples = self._fetch(records, range(len(records)))
    features_ND = np.array([np.ravel(e[self.input]) for e in examples], np.float64)
    return features_ND, np.array([e[self.output] for e in examples])

  def _fingerprint(self, split: str) -> str:
    """Over the files of the splits named in `split` and the features' description, wherever they lie."""
    names = [own for own in self.builder.info.splits if re.search(rf"\b{re.escape(own)}\b", split)]
    files = [Path(path).name for own in names for path in self.builder.info.splits[own].filepaths]
    described = ["features.json", *(path.name for path in self.folder.glob("*.labels.txt"))]
    digest = fingerprint.files(self.folder, {*files, *described}, self.options.cache_dir)
    return fingerprint.text(_DECODER, digest, split)


def _line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
