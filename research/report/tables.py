"""Numbers per class from labels and predictions: the confusion matrix, precision, recall, F1 and their averages.

A class that was never predicted (or never occurs) has precision (or recall) 0, as in scikit-learn's zero_division=0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassRow:
  """One line of the table; `support` counts the examples whose true class this is."""

  name: str
  precision: float
  recall: float
  f1: float
  support: int


def confusion_matrix(label_N: np.ndarray, prediction_N: np.ndarray, classes: int) -> np.ndarray:
  """Counts (classes, classes): row is the true class, column the predicted one."""
  flat = np.ravel_multi_index((label_N.astype(np.int64), prediction_N.astype(np.int64)), (classes, classes))
  return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
  """A row per class, then "macro average" (each class counts alike) and "weighted average" (by support).

  Args:
    counts: the confusion matrix, true classes down.

  The averages leave out classes that neither occur nor were predicted, of which nothing is known.
  """
  right, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
  precision = _divide(right, predicted)
  recall = _divide(right, support)
  f1 = _divide(2 * right, support + predicted)
  columns = (values.tolist() for values in (precision, recall, f1, support))
  rows = [ClassRow(*values) for values in zip(class_names, *columns, strict=True)]
  present = (support + predicted) > 0
  for name, weights in (("macro average", present.astype(float)), ("weighted average", support.astype(float))):
    means = [float(np.dot(values, weights) / max(weights.sum(), 1e-30)) for values in (precision, recall, f1)]
    rows.append(ClassRow(name, *means, int(support.sum())))
  return rows


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  return np.where(below > 0, above / np.maximum(below, 1), 0.0)


def regression(target_N: np.ndarray, prediction_N: np.ndarray) -> dict[str, float]:
  """Mean absolute and root mean squared error in the target's units, and R² (NaN if the targets are all equal)."""
  error = prediction_N.astype(np.float64) - target_N
  spread = float(np.sum((target_N - target_N.mean(dtype=np.float64)) ** 2))
  return {
    "mean absolute error": float(np.abs(error).mean()),
    "root mean squared error": float(np.sqrt((error**2).mean())),
    "R²": 1 - float((error**2).sum()) / spread if spread else float("nan"),
  }
