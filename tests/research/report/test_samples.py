"""Sample files hold the pictures themselves, large enough to see, and follow the step that a run resumes from."""

import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from research.report import Report, samples

GREY = np.full((1, 2, 2, 1), 100, np.uint8)


def pixels(path):
  with Image.open(path) as picture:
    return np.asarray(picture)


def names(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def test_the_grid_holds_every_picture_row_by_row():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 3), np.uint8)
  grid = samples.grid(images, gap=2)
  # Three columns of 4 pixels and two rows of 3, two pixels apart; the sixth place is empty.
  assert grid.shape == (3 + 2 + 3, 4 + 2 + 4 + 2 + 4, 3)
  assert [grid[top, left, 0] for top in (0, 5) for left in (0, 6, 12)] == [0, 1, 2, 3, 4, 255]
  assert (grid[3:5] == 255).all()


def test_pictures_in_rows_keep_their_rows():
  images = np.arange(10, dtype=np.uint8).reshape(2, 5, 1, 1, 1)
  assert samples.grid(images, gap=1)[::2, ::2, 0].tolist() == images[..., 0, 0, 0].tolist()


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_a_sheet_is_large_enough_to_see_and_gives_every_pixel_back(count, height, width, channels):
  images = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)
  small = samples.grid(images, gap=1)
  assume(max(small.shape[:2]) <= 400)
  sheet = samples.sheet(images)
  assert 400 < max(sheet.shape[:2]) <= 800
  factor = max(sheet.shape[:2]) // max(small.shape[:2])
  np.testing.assert_array_equal(sheet[factor // 2 :: factor, factor // 2 :: factor], small)


def test_large_pictures_stay_as_they_are():
  images = np.zeros((4, 300, 250, 3), np.uint8)
  np.testing.assert_array_equal(samples.sheet(images), samples.grid(images, gap=2))


def test_files_stay_small(tmp_path):
  """Noise does not compress; enlarging must add next to nothing to it."""
  images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), np.uint8)
  path = samples.write(tmp_path, 1, images)[samples.MAIN]
  assert pixels(path).shape == (3 * 231, 3 * 231)
  assert path.stat().st_size < 2 * images.size


def test_floats_are_shares_of_white():
  images = np.array([0.0, 0.5, 1.0], np.float32).reshape(3, 1, 1, 1)
  assert samples.as_uint8(images).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
  "images",
  [np.full((1, 2, 2, 1), 1.5), np.full((1, 2, 2, 1), -0.1), np.zeros((2, 2, 2, 2)), np.zeros((0, 2, 2, 1)), np.ones(3)],
)
def test_what_is_no_picture_is_refused(images):
  with pytest.raises(ValueError, match="sample") as caught:
    samples.as_uint8(images)
  assert not isinstance(caught.value, samples.NotNumbers)


@pytest.mark.parametrize("several", [{}, {"main": GREY, "../x": GREY}, {"a b": GREY}, {"": GREY}])
def test_kinds_need_names_that_can_be_folders(tmp_path, several):
  with pytest.raises(ValueError, match="sample"):
    samples.write(tmp_path / "samples", 1, several)
  assert not (tmp_path / "samples").exists()


def test_the_first_of_several_kinds_is_the_main_one(tmp_path):
  folder = tmp_path / "samples"
  written = samples.write(folder, 500, {"digits": GREY, "interpolation": GREY[None], "words": "to be"})
  assert names(folder) == ["000500.png", "interpolation/000500.png", "words/000500.txt"]
  assert list(written) == ["", "interpolation", "words"]
  assert samples.title(folder / "000500.png") == "digits"
  assert samples.find(folder) == {kind: [path] for kind, path in written.items()}


def test_a_step_that_is_sampled_again_is_written_over(tmp_path):
  samples.write(tmp_path, 5, {"main": GREY, "other": GREY})
  samples.write(tmp_path, 5, {"main": "a text now", "other": np.zeros_like(GREY)})
  assert names(tmp_path) == ["000005.txt", "other/000005.png"]
  assert not pixels(tmp_path / "other" / "000005.png").any()


def test_truncation_knows_steps_of_any_length(tmp_path):
  for step in (5, 1_000_000, 2_000_000):
    samples.write(tmp_path, step, "text")
  (tmp_path / "mine.txt").write_text("not a sample")
  kept = samples.truncate_after(tmp_path, 1_000_000)
  assert [path.name for path in kept[samples.MAIN]] == ["000005.txt", "1000000.txt"]
  assert names(tmp_path) == ["000005.txt", "1000000.txt", "mine.txt"]


def test_truncation_reaches_every_kind_and_leaves_what_is_not_ours(tmp_path):
  for step in (5, 9):
    samples.write(tmp_path, step, {"main": GREY, "other": GREY, **({"late": GREY} if step == 9 else {})})
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("not a sample")
  kept = samples.truncate_after(tmp_path, 5)
  assert {kind: [path.name for path in paths] for kind, paths in kept.items()} == {
    "": ["000005.png"], "other": ["000005.png"],
  }  # fmt: skip
  assert names(tmp_path) == ["000005.png", "mine/notes.txt", "other/000005.png"]
  assert not (tmp_path / "late").exists()
  assert samples.truncate_after(tmp_path / "nothing", 5) == {}


@pytest.mark.parametrize("fault", ["NaN", "no Pillow"])
def test_a_run_survives_pictures_that_cannot_be_drawn(tmp_path, capsys, monkeypatch, fault):
  with Report(tmp_path, header={}, total_steps=3, batch_size=1) as report:
    report.sample(1, {"main": GREY})
    if fault == "NaN":
      report.sample(2, {"main": np.full((1, 2, 2, 1), np.nan), "other": GREY})
    else:
      monkeypatch.setitem(sys.modules, "PIL", None)
      report.sample(2, GREY)
  assert capsys.readouterr().out.startswith("no samples of step 2: ")
  assert names(tmp_path / "samples") == ["000001.png"]
