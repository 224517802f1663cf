"""Dividing: exact sizes, stratification, keys; and what is refused."""

import numpy as np
import pytest

from research.data import open_splits, splits
from research.errors import UserError


def _stratified(labels, taken, seed=0):
  return splits.stratified(np.asarray(labels), taken, np.random.Philox(key=[seed, 1]))


def test_iris_is_divided_into_120_and_30_with_ten_of_each_class():
  iris = open_splits("sklearn:iris")
  assert (iris.train.size, iris.test.size, iris.validation) == (120, 30, None)
  assert np.bincount(iris.test.column("label")).tolist() == [10, 10, 10]
  assert np.bincount(iris.train.column("label")).tolist() == [40, 40, 40]


@pytest.mark.parametrize("seed", range(20))
def test_every_class_is_within_one_of_its_share_and_the_total_is_exact(seed):
  rng = np.random.default_rng(seed)
  labels_N = rng.integers(0, 7, 200) ** 2 // 5
  taken = int(rng.integers(1, 199))
  is_taken_N = _stratified(labels_N, taken, seed)
  assert is_taken_N.sum() == taken
  for label in np.unique(labels_N):
    share = taken * (labels_N == label).sum() / 200
    assert np.floor(share) <= is_taken_N[labels_N == label].sum() <= np.ceil(share)


def test_places_left_over_go_to_the_largest_remainders():
  labels_N = [0] * 3 + [1] * 3 + [2] * 4  # shares of 5: 1.5, 1.5, 2.0
  assert np.bincount(np.array(labels_N)[_stratified(labels_N, 5)]).tolist() == [2, 1, 2]  # ties: lower class first
  labels_N = [0] * 13 + [1] * 17  # shares of 10: 4.33, 5.67
  assert np.bincount(np.array(labels_N)[_stratified(labels_N, 10)]).tolist() == [4, 6]


def test_the_division_is_pinned():
  # Philox's raw stream is fixed by numpy's compatibility policy; a change here would move every user's test set.
  assert np.flatnonzero(_stratified([0, 1] * 10, 6)).tolist() == [5, 12, 14, 15, 16, 17]


def test_splits_are_disjoint_whole_and_keyed():
  seen = []
  for seed in (0, 0, 1):
    parts = open_splits("synthetic:line_noisy?size=100", validation_fraction=0.25, split_seed=seed)
    assert (parts.train.size, parts.validation.size, parts.test.size) == (60, 20, 20)  # a quarter of what is left
    x = [np.sort(part.column("features")[:, 0]) for part in (parts.train, parts.validation, parts.test)]
    assert len(np.unique(np.concatenate(x))) == 100
    seen.append((parts.fingerprint, x[2].tolist()))
  assert seen[0] == seen[1]
  assert seen[0][0] != seen[2][0]
  assert seen[0][1] != seen[2][1]


def test_test_and_validation_draws_are_independent():
  whole = open_splits("synthetic:line_noisy?size=100", test_fraction=0).train
  _, test = splits.divide(whole, "test", 0.5, 0)
  _, validation = splits.divide(whole, "validation", 0.5, 0)
  assert 5 < len(np.intersect1d(test.column("target"), validation.column("target"))) < 45


def test_a_fraction_speaks_only_of_splits_that_are_not_given(tmp_path):
  x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
  np.savez(tmp_path / "given.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
  parts = open_splits(f"npz:{tmp_path / 'given.npz'}", test_fraction=0.5, validation_fraction=0.5)
  assert (parts.train.size, parts.validation.size, parts.test.size) == (10, 10, 4)
  np.savez(tmp_path / "valid.npz", x_train=x, y_train=y, x_val=x[:6], y_val=y[:6])
  parts = open_splits(f"npz:{tmp_path / 'valid.npz'}", test_fraction=0.5, validation_fraction=0.5)
  assert (parts.train.size, parts.validation.size, parts.test) == (20, 6, None)
  np.savez(tmp_path / "train.npz", x_train=x, y_train=y)
  parts = open_splits(f"npz:{tmp_path / 'train.npz'}", test_fraction=0.5)
  assert (parts.train.size, parts.test.size) == (10, 10)


def test_zero_leaves_a_split_out_even_of_one_example(tmp_path):
  np.savez(tmp_path / "one.npz", x=[[1.0, 2.0]], label=[0])
  parts = open_splits(f"npz:{tmp_path / 'one.npz'}", test_fraction=0)
  assert (parts.train.size, parts.test, parts.validation) == (1, None, None)
  np.testing.assert_array_equal(parts.train.gather([0])["features"], [[0, 0]])
  with pytest.raises(UserError, match=r"test_fraction=0\.2 of npz:.*1 examples leaves an empty test split"):
    open_splits(f"npz:{tmp_path / 'one.npz'}")


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"test_fraction": 1.0}, "test_fraction is 1.0; it must be at least 0 and below 1"),
    ({"validation_fraction": -0.1}, "validation_fraction is -0.1"),
    ({"validation_fraction": float("nan")}, "validation_fraction is nan"),
    ({"test_fraction": 0.001}, "leaves an empty test split"),
    ({"test_fraction": 0.999}, "leaves an empty training split"),
    ({"split_seed": -1}, "split_seed is -1"),
  ],
)
def test_impossible_divisions_are_one_line(options, line):
  with pytest.raises(UserError, match=line) as caught:
    open_splits("sklearn:iris", **options)
  assert "\n" not in str(caught.value)


def test_target_statistics_describe_the_training_targets():
  parts = open_splits("sklearn:diabetes")
  target_N = parts.train.column("target").astype(np.float64)
  assert parts.target_mean == pytest.approx(target_N.mean(), rel=1e-12)
  assert parts.target_std == pytest.approx(target_N.std(), rel=1e-12)
  assert open_splits("sklearn:iris").target_mean is None


def test_classes_without_examples_are_named(tmp_path):
  np.savez(tmp_path / "gap.npz", x=np.ones((4, 2)), y=[0, 2, 0, 2])
  parts = open_splits(f"npz:{tmp_path / 'gap.npz'}", test_fraction=0.5)
  assert parts.notes[0] == "the train split has no example of 1 of its classes: 1"


def test_splits_that_disagree_are_refused(tmp_path):
  x_train, x_test = np.ones((4, 4, 4), np.uint8), np.ones((2, 5, 4), np.uint8)
  np.savez(tmp_path / "a.npz", x_train=x_train, y_train=[0, 1] * 2, x_test=x_test, y_test=[0, 1])
  with pytest.raises(UserError, match="different shapes"):
    open_splits(f"npz:{tmp_path / 'a.npz'}")
