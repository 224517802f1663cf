"""Sample files hold the pictures themselves, and follow the step that a run resumes from."""

import numpy as np
import pytest
from PIL import Image

from research.report import samples


def test_the_grid_holds_every_picture_row_by_row(tmp_path):
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 3), np.uint8)
  path = samples.write(tmp_path / "samples", 500, images)
  assert path.name == "000500.png"
  with Image.open(path) as picture:
    pixels = np.asarray(picture)
  # Three columns of 4 pixels and two rows of 3, two pixels apart; the sixth place is empty.
  assert pixels.shape == (3 + 2 + 3, 4 + 2 + 4 + 2 + 4, 3)
  assert [pixels[top, left, 0] for top in (0, 5) for left in (0, 6, 12)] == [0, 1, 2, 3, 4, 255]
  assert (pixels[3:5] == 255).all()


def test_floats_are_shares_of_white():
  images = np.array([0.0, 0.5, 1.0], np.float32).reshape(3, 1, 1, 1)
  assert samples.as_uint8(images).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("images", [np.full((1, 2, 2, 1), 1.5), np.full((1, 2, 2, 1), np.nan), np.zeros((2, 2, 2, 2))])
def test_what_is_no_picture_is_refused(images):
  with pytest.raises(ValueError, match="sample"):
    samples.as_uint8(images)


def test_truncation_knows_steps_of_any_length(tmp_path):
  for step in (5, 1_000_000, 2_000_000):
    samples.write(tmp_path, step, "text")
  (tmp_path / "mine.txt").write_text("not a sample")
  assert [path.name for path in samples.truncate_after(tmp_path, 1_000_000)] == ["000005.txt", "1000000.txt"]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["000005.txt", "1000000.txt", "mine.txt"]
