"""npz: which arrays are read as what, and hostile or broken files."""

import io
import zipfile

import numpy as np
import pytest

from research.data import open_splits
from research.errors import UserError

IMAGES = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)


@pytest.fixture
def saved(tmp_path):
  def save(**arrays) -> str:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    return f"npz:{tmp_path / 'a.npz'}"

  return save


def _opened(uri):
  return open_splits(uri, test_fraction=0).train


@pytest.mark.parametrize(
  "keys",
  [
    ("x", "y"),
    ("X", "Y"),
    ("image", "label"),
    ("images", "labels"),
    ("train_images", "train_labels"),
    ("x_train", "y_train"),
  ],
)
def test_names_of_pictures_and_labels(saved, keys):
  train = _opened(saved(**dict(zip(keys, (IMAGES, [0, 2, 1, 0]), strict=True))))
  np.testing.assert_array_equal(train.column("image"), IMAGES[..., None])
  np.testing.assert_array_equal(train.column("label"), [0, 2, 1, 0])
  assert train.column("label").dtype == np.int32
  assert train.schema.class_names == ("0", "1", "2")


def test_keras_and_medmnist_splits(saved):
  x, y = np.tile(IMAGES[..., None], (3, 1, 1, 1)), np.array([[0], [1]] * 6, np.uint8)
  parts = open_splits(saved(train_images=x, train_labels=y, val_images=x[:3], val_labels=y[:3], test_images=x[:2],
                            test_labels=y[:2]))  # fmt: skip
  assert (parts.train.size, parts.validation.size, parts.test.size) == (12, 3, 2)
  assert parts.test.gather([1])["label"].tolist() == [1]


@pytest.mark.parametrize(
  ("key", "array", "output", "names"),
  [
    ("y", np.array([0.0, 1.0, 2.0, 1.0]), "target", ()),
    ("y", np.array([True, False, True, False]), "label", ("0", "1")),
    ("label", np.array([0.0, 1.0, 2.0, 1.0], np.float32), "label", ("0", "1", "2")),
    ("target", np.array([3, 1, 2, 1]), "target", ()),
    ("label", np.array(["b", "a", "b", "c"]), "label", ("a", "b", "c")),
    ("y", np.array([[0], [1], [2], [1]], np.uint8), "label", ("0", "1", "2")),
  ],
)
def test_what_an_output_is(saved, key, array, output, names):
  train = _opened(saved(x=np.eye(4), **{key: array}))
  assert train.schema.output == output
  assert train.schema.class_names == names


def test_tables_are_standardised_by_training(saved):
  x = np.arange(8.0).reshape(4, 2)
  uri = saved(x_train=x, y_train=[0, 1, 0, 1], x_test=[[3.0, 100.0]], y_test=[1], feature_names=["p", "q"])
  parts = open_splits(uri)
  np.testing.assert_allclose(parts.train.column("features"), (x - x.mean(0)) / x.std(0), rtol=1e-6)
  np.testing.assert_allclose(parts.test.column("features")[0], [0, 96 / np.sqrt(5)], rtol=1e-6)
  assert parts.train.schema.feature_names == ("p", "q")
  assert _opened(saved(x=np.arange(4.0), y=np.arange(4.0))).schema.features["features"].shape == (1,)


def test_a_number_far_beyond_the_training_ones_names_its_column(saved):
  uri = saved(x_train=[[-1e-300], [1e-300]], y_train=[0, 1], x_test=[[1e300]], y_test=[0])
  with pytest.raises(UserError, match=r"npz:\S+ \(test\): column 'x0' of example 0 is infinite"):
    open_splits(uri)


def test_class_names_and_whole_floats_are_kept(saved):
  train = _opened(saved(x=IMAGES.astype(np.float32), y=["cat", "dog", "cat", "cat"], class_names=["emu", "dog", "cat"]))
  assert train.schema.class_names == ("emu", "dog", "cat")
  np.testing.assert_array_equal(train.column("label"), [2, 1, 2, 2])
  np.testing.assert_array_equal(train.column("image")[..., 0], IMAGES)


NAN = np.array([[1.0, 2.0], [3.0, np.nan]])


@pytest.mark.parametrize(
  ("arrays", "line"),
  [
    ({"x": NAN, "y": [0, 1]}, "column 'x1' of example 1 is NaN"),
    ({"x": NAN, "y": [0, 1], "feature_names": ["age", "size"]}, "column 'size' of example 1 is NaN"),
    ({"x": np.array([[np.inf]]), "y": [0]}, "column 'x0' of example 0 is infinite"),
    ({"x": np.ones((2, 1)), "target": [1.0, np.nan]}, "the target of example 1 is nan"),
    ({"x": np.ones((2, 1)), "y": [0, -1]}, "label -1 of example 1 is out of range"),
    ({"x": np.ones((2, 1)), "y": [0, 5000]}, "label 5000 of example 1 is out of range"),
    ({"x": IMAGES, "y": [0, 1, 2, 3], "class_names": ["a", "b"]}, "label 2 of example 2 is out of range; there are 2"),
    ({"x": IMAGES, "y": np.array([0, 1, 0, 2**32]), "class_names": ["a", "b"]}, "label 4294967296 of example 3"),
    ({"x": np.eye(2), "y": np.array([0, 2**32]), "class_names": ["a", "b"]}, "label 4294967296 of example 1"),
    ({"x": np.ones((4, 1)), "y": np.array([0, 1, 0, 2**64 - 1], np.uint64)}, "of example 3 is out of range"),
    ({"x_train": IMAGES, "y_train": [0, 1, 0, 1], "x_test": IMAGES[:1], "y_test": [7]}, "label 7 of example 0 is out"),
    ({"x": np.ones((2, 1)), "label": [0, 0.5]}, "label 0.5 of example 1 is not a class number"),
    ({"x": np.ones((2, 1)), "y": np.eye(2)}, r"y has shape \(2, 2\); needed is one output"),
    ({"x": np.ones((2, 1)), "y": [0]}, "2 inputs but 1 outputs"),
    ({"x": np.ones((0, 1)), "y": np.zeros(0, int)}, "is empty; a split needs at least one example"),
    ({"x": np.ones((0, 1)), "y": np.zeros(0)}, "is empty; a split needs at least one example"),
    ({"x": IMAGES / 255, "y": [0, 1, 0, 1]}, "images hold whole numbers 0 to 255"),
    ({"x": np.ones((2, 3, 32, 32), np.uint8), "y": [0, 1]}, "channels first"),
    ({"x": np.ones((2, 3, 4, 5, 6)), "y": [0, 1]}, r"needed is \(N, D\)"),
    ({"x": np.array(["a", "b"]), "y": [0, 1]}, "not numbers"),
    ({"x": IMAGES, "image": IMAGES, "y": [0] * 4}, "has both x and image"),
    ({"inputs": IMAGES, "outputs": [0] * 4}, "holds inputs, outputs; needed are x and y"),
    ({"x_train": IMAGES, "y": [0] * 4}, "needed are x and y"),
    ({"x": IMAGES, "y": ["a", "b", "cta", "b"], "class_names": ["a", "b", "cat"]}, r"'cta' is not .*mean cat\?"),
  ],
)
def test_wrong_content_is_one_line(saved, arrays, line):
  with pytest.raises(UserError, match=line) as caught:
    _opened(saved(**arrays))
  assert "\n" not in str(caught.value)


class Bomb:
  def __reduce__(self):
    return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_refused_unopened(saved):
  with pytest.raises(UserError, match="x holds pickled objects"):
    _opened(saved(x=np.array([Bomb()], object), y=[0]))


def _zip_of(path, content: bytes) -> str:
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x.npy", content)
    good = io.BytesIO()
    np.save(good, np.array([0]))
    archive.writestr("y.npy", good.getvalue())
  return f"npz:{path}"


def test_a_header_that_claims_the_moon_sets_no_memory_aside(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
  uri = _zip_of(tmp_path / "a.npz", header.getvalue() + bytes(64))
  with pytest.raises(UserError, match=r"x claims \(1000000000000000,\) of float64, 8\d+ bytes, but holds 64"):
    _opened(uri)


OVERSIZED = b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535


@pytest.mark.parametrize("content", [OVERSIZED, b"\x93NUMPY\x09\x00", b"hello", b""])
def test_broken_headers_are_one_line(tmp_path, content):
  with pytest.raises(UserError, match="npz") as caught:
    _opened(_zip_of(tmp_path / "a.npz", content))
  assert "\n" not in str(caught.value)


def test_every_truncation_is_one_line(saved, tmp_path):
  saved(x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20))
  whole = (tmp_path / "a.npz").read_bytes()
  for length in range(0, len(whole), 37):
    (tmp_path / "cut.npz").write_bytes(whole[:length])
    with pytest.raises(UserError, match="truncated, damaged or not an npz"):
      _opened(f"npz:{tmp_path / 'cut.npz'}")


def test_a_flipped_bit_is_noticed(saved, tmp_path):
  saved(x=np.random.default_rng(0).integers(0, 255, (50, 8, 8), np.uint8), y=np.arange(50))
  content = bytearray((tmp_path / "a.npz").read_bytes())
  content[800] ^= 4
  (tmp_path / "a.npz").write_bytes(content)
  with pytest.raises(UserError, match="truncated, damaged"):
    _opened(f"npz:{tmp_path / 'a.npz'}")


def test_symbolic_links_are_followed(saved, tmp_path):
  saved(x=IMAGES, y=[0, 1, 0, 1])
  (tmp_path / "link.npz").symlink_to("a.npz")
  assert _opened(f"npz:{tmp_path / 'link.npz'}").size == 4
