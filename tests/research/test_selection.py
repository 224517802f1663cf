"""Best and patience follow from the scores alone."""

import math

import pytest

from research import selection


@pytest.mark.parametrize(
  ("metric", "scores", "best"),
  [
    ("validation/accuracy", [(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.1)], (2, 0.9)),
    ("validation/loss", [(1, 0.5), (2, 0.9), (3, 0.1), (4, 0.1)], (3, 0.1)),
    ("validation/loss", [(1, math.nan), (2, 0.4)], (2, 0.4)),
    ("validation/loss", [(1, math.nan)], None),
    ("validation/loss", [], None),
  ],
)
def test_best_is_the_earliest_of_the_best(metric, scores, best):
  assert selection.best(metric, scores) == best


@pytest.mark.parametrize(
  "name", ["loss", "frechet_distance", "kernel_distance", "divergence", "mae", "rmse", "mase", "word_error", "dropped"]
)
def test_what_should_be_low(name):
  assert selection.lower_is_better(f"generated/{name}")


@pytest.mark.parametrize(
  "name", ["accuracy", "precision", "recall", "modes", "high_quality", "elbo", "psnr", "gain_db", "coverage", "skill"]
)
def test_what_should_be_high(name):
  assert not selection.lower_is_better(f"generated/{name}")


@pytest.mark.parametrize(
  ("values", "patience", "expected"),
  [([1, 2, 3], 2, True), ([3, 2, 1], 2, False), ([1, 2], 2, False), ([1, 2, 0.5, 1], 3, False), ([1, 9, 9], 0, False)],
)
def test_patience_counts_evaluations_since_the_best(values, patience, expected):
  assert selection.exhausted("validation/loss", list(enumerate(values)), patience) is expected


def test_scores_are_read_back_from_the_record():
  records = [{"step": 1, "train/loss": 3.0}, {"step": 2, "validation/loss": 2.0}, {"step": 4, "validation/loss": 1.0}]
  assert selection.from_records("validation/loss", records) == [(2, 2.0), (4, 1.0)]
