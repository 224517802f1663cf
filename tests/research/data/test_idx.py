"""idx: files in MNIST's own form, raw and gzipped, and broken ones."""

import gzip
import struct

import numpy as np
import pytest

from research.data import open_splits
from research.errors import UserError

IMAGES = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
LABELS = np.array([0, 2, 1, 1, 0, 2], np.uint8)


def _idx(array: np.ndarray) -> bytes:
  return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write(folder, zipped=False, test=True, joint="-"):
  folder.mkdir(exist_ok=True)
  for prefix, count in (("train", 6), ("t10k", 3))[: 1 + test]:
    for kind, array in ((f"images{joint}idx3", IMAGES[:count]), (f"labels{joint}idx1", LABELS[:count])):
      content = _idx(array)
      path = folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
      path.write_bytes(gzip.compress(content) if zipped else content)
  return f"idx:{folder}"


def test_raw_gzipped_and_dotted_files_give_the_same_examples_and_fingerprint(tmp_path):
  opened = [
    open_splits(_write(tmp_path / "raw")),
    open_splits(_write(tmp_path / "gz", zipped=True)),
    open_splits(_write(tmp_path / "dot", joint=".")),
  ]
  for parts in opened:
    np.testing.assert_array_equal(parts.train.column("image"), IMAGES[..., None])
    np.testing.assert_array_equal(parts.train.column("label"), LABELS)
    assert parts.test.size == 3
    assert parts.test.schema.class_names == ("0", "1", "2")
  assert len({parts.fingerprint for parts in opened}) == 1


def test_training_files_alone_are_divided(tmp_path):
  parts = open_splits(_write(tmp_path / "raw", test=False), test_fraction=0.5)
  assert (parts.train.size, parts.test.size) == (3, 3)
  assert sorted(parts.test.column("label")) == [0, 1, 2]  # stratified: one of each


@pytest.mark.parametrize("zipped", [False, True])
def test_every_truncation_is_one_line(tmp_path, zipped):
  uri = _write(tmp_path / "a", zipped)
  path = next((tmp_path / "a").glob("train-images*"))
  whole = path.read_bytes()
  for length in range(0, len(whole), 5):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError, match=rf"data: {path} is (truncated or damaged|not an IDX file|damaged)") as caught:
      open_splits(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "content", "line"),
  [
    ("train-images-idx3-ubyte", _idx(IMAGES) + b"!", "it holds more"),
    ("train-images-idx3-ubyte", _idx(IMAGES[:5]), "has 5 images but .* has 6 labels"),
    ("train-images-idx3-ubyte", b"\x89PNG\r\n" + bytes(20), "not an IDX file of 3-axis uint8: it begins 89 50 4e 47"),
    ("train-images-idx3-ubyte", _idx(LABELS) + bytes(20), "not an IDX file of 3-axis uint8"),
    ("train-images-idx3-ubyte", bytes([0, 0, 8, 3]) + b"\xff" * 12, "it holds fewer"),
    ("t10k-labels-idx1-ubyte", _idx(np.array([0, 1, 9], np.uint8)), "label 9 of example 2 is out of range; .* 3"),
    ("t10k-images-idx3-ubyte", _idx(np.ones((3, 5, 5), np.uint8)), r"image of uint8\(4, 3, 1\) but .*\(5, 5, 1\)"),
    ("t10k-images-idx3-ubyte", _idx(np.ones((0, 4, 3), np.uint8)), "0 images but .* 3 labels"),
  ],
)
def test_damage_is_one_line(tmp_path, name, content, line):
  uri = _write(tmp_path / "a")
  (tmp_path / "a" / name).write_bytes(content)
  with pytest.raises(UserError, match=line):
    open_splits(uri)


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
  uri = _write(tmp_path / "a")
  (tmp_path / "a" / "train-labels-idx1-ubyte").unlink()
  with pytest.raises(UserError, match=r"no train-labels-idx1-ubyte\[\.gz\] in .*there: t10k-images-idx3-ubyte"):
    open_splits(uri)


def test_an_empty_split_is_refused(tmp_path):
  uri = _write(tmp_path / "a")
  (tmp_path / "a" / "t10k-images-idx3-ubyte").write_bytes(_idx(IMAGES[:0]))
  (tmp_path / "a" / "t10k-labels-idx1-ubyte").write_bytes(_idx(LABELS[:0]))
  with pytest.raises(UserError, match=r"\(test\) is empty"):
    open_splits(uri)
