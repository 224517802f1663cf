"""What is kept of each example, and that a hostile or damaged file cannot hurt."""

import numpy as np
import pytest

from research.errors import UserError
from research.report import predictions


def test_the_worst_mistakes_come_first_with_their_pictures(classified):
  found = predictions.collect(**classified)
  assert found["worst"].tolist() == [5, 7, 2]  # by loss; right answers never
  assert found["worst_images"][:, 0, 0, 0].tolist() == [50, 70, 20]


def test_nan_is_the_worst_loss():
  rows = {"label": np.zeros(3, int), "prediction": np.ones(3, int), "loss": np.array([1.0, np.nan, 2.0])}
  assert predictions.worst_mistakes(rows).tolist() == [1, 2, 0]


def test_classes_without_names_get_their_numbers():
  rows = {"label": np.array([0, 3]), "prediction": np.array([0, 1]), "loss": np.zeros(2)}
  assert predictions.collect(rows, ["zero"])["class_names"].tolist() == ["zero", "1", "2", "3"]


def test_large_pictures_are_thinned_out_and_odd_channels_become_grey():
  rows = {"label": np.array([0]), "prediction": np.array([1]), "loss": np.ones(1), "index": np.array([0])}
  images = lambda indices: np.zeros((len(indices), 400, 200, 4), np.uint8)  # noqa: E731
  assert predictions.collect(rows, images=images)["worst_images"].shape == (1, 134, 67, 1)


def test_the_file_gives_back_what_was_written(tmp_path, classified):
  path = tmp_path / "predictions.npz"
  assert predictions.read(path) is None
  wanted = predictions.collect(**classified)
  predictions.write(path, wanted)
  found = predictions.read(path)
  assert found.keys() == wanted.keys()
  for name, values in wanted.items():
    np.testing.assert_array_equal(found[name], values)


def test_a_file_with_a_pickle_in_it_is_refused(tmp_path):
  path = tmp_path / "predictions.npz"
  np.savez(path, label=np.array([print], dtype=object))
  with pytest.raises(UserError, match="is damaged"):
    predictions.read(path)


def test_a_cut_file_is_refused(tmp_path, classified):
  path = tmp_path / "predictions.npz"
  predictions.write(path, predictions.collect(**classified))
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match="is damaged"):
    predictions.read(path)
