"""Per-class numbers against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics

from research.report import tables


def test_the_matrix_has_true_classes_down():
  counts = tables.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
  assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_f1_are_scikit_learns(seed):
  generator = np.random.default_rng(seed)
  classes = 6
  label, prediction = generator.integers(0, classes - 1, 200), generator.integers(1, classes, 200)
  # Class 0 is never predicted and class 5 never occurs.
  counts = tables.confusion_matrix(label, prediction, classes)
  np.testing.assert_array_equal(counts, metrics.confusion_matrix(label, prediction, labels=range(classes)))
  rows = tables.per_class(counts, "abcdef")
  found = np.array([(row.precision, row.recall, row.f1, row.support) for row in rows])
  columns = metrics.precision_recall_fscore_support(label, prediction, labels=range(classes), zero_division=0)
  np.testing.assert_allclose(found[:classes], np.stack(columns, 1), rtol=1e-12)
  for row, average in ((rows[-2], "macro"), (rows[-1], "weighted")):
    wanted = metrics.precision_recall_fscore_support(label, prediction, average=average, zero_division=0)
    np.testing.assert_allclose((row.precision, row.recall, row.f1), wanted[:3], rtol=1e-12)
    assert row.support == 200


def test_by_hand():
  # Of class a: 3 right, 1 taken for b; of b: 1 right, 1 taken for a.
  row = tables.per_class(np.array([[3, 1], [1, 1]]), "ab")[0]
  assert (row.name, row.precision, row.recall, row.f1, row.support) == ("a", 0.75, 0.75, 0.75, 4)


def test_a_class_of_which_nothing_is_known_does_not_count_in_the_average():
  rows = tables.per_class(np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0]]), "abc")
  assert (rows[2].f1, rows[3].name, rows[3].f1) == (0.0, "macro average", 1.0)


def test_regression_numbers_are_scikit_learns():
  generator = np.random.default_rng(0)
  target = generator.normal(size=50)
  prediction = target + generator.normal(size=50)
  found = tables.regression(target, prediction)
  assert found["mean absolute error"] == pytest.approx(metrics.mean_absolute_error(target, prediction), rel=1e-12)
  assert found["root mean squared error"] ** 2 == pytest.approx(metrics.mean_squared_error(target, prediction))
  assert found["R²"] == pytest.approx(metrics.r2_score(target, prediction), rel=1e-12)
