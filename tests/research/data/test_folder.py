"""folder: pictures in class folders, with and without splits, of one size."""

import os

import numpy as np
import pytest
from PIL import Image

from research.data import open_splits
from research.errors import UserError


@pytest.fixture
def made(tmp_path):
  """make("cat/1.png", array) writes a picture below a folder; `uri` opens it."""

  class Made:
    root = tmp_path / "pictures"
    uri = f"folder:{tmp_path / 'pictures'}"
    cache = str(tmp_path / "cache")

    def __call__(self, name, array_HW_, mode=None):
      path = self.root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      image = Image.fromarray(array_HW_)
      (image.convert(mode) if mode else image).save(path)

    def opened(self, **options):
      return open_splits(self.uri, cache_dir=self.cache, **{"test_fraction": 0, **options})

  return Made()


def _colour(value, height=4, width=5):
  return np.full((height, width, 3), value, np.uint8) + np.arange(3, dtype=np.uint8)


def test_class_folders_become_labels_in_sorted_order(made):
  for number, name in enumerate(["dog/b.png", "cat/z.png", "cat/a.PNG", "dog/deep/er/c.png"]):
    made(name, _colour(10 * number))
  (made.root / "cat" / "Thumbs.db").write_bytes(b"no picture")
  (made.root / "cat" / ".hidden.png").write_bytes(b"no picture")
  (made.root / "emu").mkdir()
  parts = made.opened()
  assert parts.train.schema.class_names == ("cat", "dog", "emu")
  assert parts.train.column("label").tolist() == [0, 0, 1, 1]
  np.testing.assert_array_equal(parts.train.column("image"), np.stack([_colour(v) for v in (20, 10, 0, 30)]))
  assert parts.notes == ("the train split has no example of 1 of its classes: emu",)


def test_split_folders_are_used_as_they_are(made):
  for name, value in [("train/a/1.png", 1), ("train/b/1.png", 2), ("test/b/1.png", 3), ("val/a/1.png", 4)]:
    made(name, _colour(value))
  parts = made.opened(test_fraction=0.5)
  assert [part.gather([0])["image"][0, 0, 0, 0] for part in (parts.train, parts.validation, parts.test)] == [1, 4, 3]
  assert parts.test.column("label").tolist() == [1]


def test_grey_stays_grey_and_one_coloured_picture_makes_all_coloured(made):
  grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
  made("a/1.png", grey)
  made("b/1.png", grey > 9)  # mode 1
  assert made.opened().train.schema.features["image"].shape == (4, 5, 1)
  made("b/2.png", _colour(7))
  made("b/3.png", np.dstack([_colour(8), np.full((4, 5), 3, np.uint8)]))  # RGBA
  made("b/4.gif", _colour(9), "P")
  train = made.opened().train
  assert train.schema.features["image"].shape == (4, 5, 3)
  np.testing.assert_array_equal(train.column("image")[0], np.repeat(grey[..., None], 3, 2))
  np.testing.assert_array_equal(train.column("image")[3], _colour(8))


def test_decoded_once_and_again_when_a_picture_changes(made):
  made("a/1.png", _colour(1))
  made("b/1.png", _colour(2))
  lines = []
  first = made.opened(progress=lines.append)
  again = made.opened(progress=lines.append)
  assert len(lines) == 1
  assert "2 examples, once" in lines[0]
  assert again.fingerprint == first.fingerprint
  made("b/1.png", _colour(3))
  changed = made.opened(progress=lines.append)
  assert len(lines) == 2
  assert changed.fingerprint != first.fingerprint
  assert changed.train.gather([1])["image"][0, 0, 0, 0] == 3


def test_mixed_sizes_name_two_files_and_their_sizes(made):
  made("a/1.png", _colour(1))
  made("b/1.png", _colour(2, height=6, width=7))
  with pytest.raises(UserError, match=r"mixed size: \S+a/1\.png is 4x5 and \S+b/1\.png is 6x7 \(height x width\)"):
    made.opened()


def test_broken_pictures_are_named(made):
  made("a/1.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
  whole = (made.root / "a" / "1.png").read_bytes()
  for content in (whole[: len(whole) // 2], b"", b"hello"):
    (made.root / "a" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a/1\.png is not a picture that can be decoded") as caught:
      made.opened()
    assert "\n" not in str(caught.value)
  made("a/1.png", np.zeros((4, 4), np.uint16))
  with pytest.raises(UserError, match="mode I;16; only pictures of 8 bits"):
    made.opened()


def test_layouts_that_are_not_understood_are_one_line(made):
  made("1.png", _colour(1))
  with pytest.raises(UserError, match="holds pictures but no class folders; pictures go into"):
    made.opened()
  (made.root / "a").mkdir()
  with pytest.raises(UserError, match="has class folders a but no pictures"):
    made.opened()
  (made.root / "a").rmdir()
  made("train/a/1.png", _colour(1))
  made("tset/a/1.png", _colour(1))
  with pytest.raises(UserError, match=r"/tset beside a train folder is not a split \(did you mean test\?\)"):
    made.opened()


def test_links_are_followed_but_not_in_circles(made):
  made("a/1.png", _colour(1))
  os.symlink(made.root / "a", made.root / "b")
  outside = made.root.parent / "outside"
  outside.mkdir()
  os.rename(made.root / "a" / "1.png", outside / "1.png")
  os.symlink(outside, made.root / "a" / "linked")
  os.symlink(made.root / "a", made.root / "a" / "again")
  train = made.opened().train
  assert train.column("label").tolist() == [0, 1]
