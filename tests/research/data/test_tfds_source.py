"""tfds: sets written here in TFDS's own array_record form, read with no TensorFlow."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from research.data import open_splits
from research.errors import UserError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 4, 5, 3), np.uint8)


def _png(array) -> bytes:
  from PIL import Image

  stream = io.BytesIO()
  Image.fromarray(array).save(stream, "PNG")
  return stream.getvalue()


def _prepare(folder, features, splits, version="1.0.0", file_format="array_record"):
  """What `tfds build` leaves: dataset_info.json, features.json and a record file for each split."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  name = folder.name
  folder = folder / version
  folder.mkdir(parents=True)
  described = tfds.features.FeaturesDict(features)
  described.save_config(str(folder))
  infos = []
  for split, examples in splits.items():
    writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
    records = [described.serialize_example(example) for example in examples]
    for record in records:
      writer.write(record)
    writer.close()
    infos.append({
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": split, "numBytes": str(sum(map(len, records))), "shardLengths": [str(len(records))],
    })  # fmt: skip
  info = {"fileFormat": file_format, "name": name, "splits": infos, "version": version}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  return folder


def _pictures(count, labels=("red", "green", "blue"), start=0):
  return [{"image": _png(PICTURES[i]), "label": i % len(labels)} for i in range(start, start + count)]


def _picture_features(shape=(4, 5, 3)):
  import tensorflow_datasets as tfds

  return {
    "image": tfds.features.Image(shape=shape),
    "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
  }


@pytest.fixture
def blocks(tmp_path):
  _prepare(tmp_path / "data" / "blocks", _picture_features(), {"train": _pictures(9), "test": _pictures(3, start=9)})
  options = {"data_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
  return lambda uri="tfds:blocks", **more: open_splits(uri, **options, **more)


def test_given_splits_pictures_and_names(blocks):
  parts = blocks()
  np.testing.assert_array_equal(parts.train.column("image"), PICTURES[:9])
  np.testing.assert_array_equal(parts.test.column("image"), PICTURES[9:])
  np.testing.assert_array_equal(parts.train.column("label"), [0, 1, 2] * 3)
  assert parts.train.schema.class_names == ("red", "green", "blue")
  assert parts.train.column("image").dtype == np.uint8


def test_a_named_split_is_divided_and_tfds_slices_work(blocks):
  parts = blocks("tfds:blocks:train", test_fraction=1 / 3)
  assert (parts.train.size, parts.test.size) == (6, 3)
  parts = blocks("tfds:blocks:train[:4]", test_fraction=0)
  np.testing.assert_array_equal(parts.train.column("image"), PICTURES[:4])


def test_decoded_once_for_all_openings(blocks, monkeypatch):
  from research.data import pictures

  lines = []
  first = blocks(progress=lines.append)
  monkeypatch.delattr(pictures, "decoded")
  again = blocks(progress=lines.append)
  assert lines == [
    "decoding tfds:blocks:train: 9 examples, once",
    "decoding tfds:blocks:test: 3 examples, once",
  ]
  assert again.fingerprint == first.fingerprint
  np.testing.assert_array_equal(again.train.column("image"), PICTURES[:9])


def test_no_tensorflow_and_no_network_library_is_imported(blocks, tmp_path):
  code = f"""
import socket, sys
def refuse(*_): raise AssertionError("a connection was tried")
socket.socket.connect = refuse
from research.data import open_splits
open_splits("tfds:blocks", data_dir={str(tmp_path / "data")!r}, cache_dir={str(tmp_path / "cache")!r})
print([name for name in ("tensorflow", "keras", "jax") if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_the_newest_version_is_read_and_another_can_be_named(blocks, tmp_path):
  _prepare(tmp_path / "data" / "blocks", _picture_features(), {"train": _pictures(2)}, "1.10.0")
  _prepare(tmp_path / "data" / "blocks", _picture_features(), {"train": _pictures(3)}, "1.9.0")
  assert blocks(test_fraction=0).train.size == 2
  assert blocks("tfds:blocks/1.9.0", test_fraction=0).train.size == 3


@pytest.mark.parametrize(
  ("uri", "line"),
  [
    ("tfds:block", r"no dataset 'tfds:block' \(did you mean blocks\?\)"),
    ("tfds:cifar11", r"no dataset 'tfds:cifar11' \(did you mean cifar10\?\); prepared in \S+: blocks"),
    ("tfds:mnist", r"'tfds:mnist' is not prepared in \S+ \(prepared there: blocks\).*tfds build mnist --data_dir="),
    ("tfds:blocks:trian", r"Unknown split 'trian'.*\(did you mean train\?\)"),
    ("tfds:blocks/2.0.0", "no 'tfds:blocks/2.0.0' in"),
    ("tfds:../blocks", "is not a dataset's name"),
  ],
)
def test_unknown_sets_are_one_line(blocks, uri, line):
  with pytest.raises(UserError, match=line) as caught:
    blocks(uri)
  assert "\n" not in str(caught.value)


def test_a_missing_data_directory_is_named(tmp_path):
  with pytest.raises(UserError, match=rf"there is no folder {tmp_path}/dta"):
    open_splits("tfds:mnist", data_dir=str(tmp_path / "dta"))


@pytest.mark.parametrize(
  ("shape", "examples", "line"),
  [
    ((None, None, 3), [PICTURES[0], PICTURES[1][:3]], "mixed size: example 0 is 4x5 and .*example 1 is 3x5"),
    ((4, 5, 3), [b"hello"], "tfds:bad:train example 0 is not a picture that can be decoded"),
  ],
)
def test_bad_pictures_are_named(tmp_path, shape, examples, line):
  encoded = [{"image": x if isinstance(x, bytes) else _png(x), "label": 0} for x in examples]
  _prepare(tmp_path / "bad", _picture_features(shape), {"train": encoded})
  with pytest.raises(UserError, match=line):
    open_splits("tfds:bad", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), test_fraction=0)


def test_labels_that_mean_unlabelled_are_refused(tmp_path):
  _prepare(tmp_path / "bad", _picture_features(), {"train": [{"image": _png(PICTURES[0]), "label": -1}]})
  with pytest.raises(UserError, match="label -1 of example 0 is out of range"):
    open_splits("tfds:bad", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), test_fraction=0)


def test_vectors_of_numbers_are_a_table(tmp_path):
  import tensorflow_datasets as tfds

  features = {
    "features": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    "label": tfds.features.ClassLabel(names=["no", "yes"]),
  }
  x = np.array([[1, 5], [3, 5], [5, 5]], np.float32)
  _prepare(tmp_path / "flowers", features, {"train": [{"features": v, "label": i % 2} for i, v in enumerate(x)]})
  train = open_splits("tfds:flowers", data_dir=str(tmp_path), cache_dir=str(tmp_path / "c"), test_fraction=0).train
  np.testing.assert_allclose(train.column("features"), [[-np.sqrt(1.5), 0], [0, 0], [np.sqrt(1.5), 0]], rtol=1e-6)
  assert train.schema.class_names == ("no", "yes")


def test_unreadable_sets_say_what_is_wrong(tmp_path):
  import tensorflow_datasets as tfds

  _prepare(tmp_path / "words", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
  with pytest.raises(UserError, match=r"has text \(Text\); needed is one image or vector of numbers"):
    open_splits("tfds:words", data_dir=str(tmp_path))
  _prepare(tmp_path / "old", _picture_features(), {"train": _pictures(2)}, file_format="tfrecord")
  with pytest.raises(UserError, match=r"holds tfrecord files.*tfds convert_format .*--out_file_format=array_record"):
    open_splits("tfds:old", data_dir=str(tmp_path))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_records_are_one_line_and_leave_no_cache(tmp_path, kept):
  folder = _prepare(tmp_path / "cut", _picture_features(), {"train": _pictures(9)})
  path = next(folder.glob("*.array_record*"))
  path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  with pytest.raises(UserError, match="cut") as caught:
    open_splits("tfds:cut", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.glob("cache/decoded/*/*.npy"))
