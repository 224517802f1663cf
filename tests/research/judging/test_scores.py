"""The scores together: each under its name, and each worse for a worse generator."""

import numpy as np
import pytest

from research.errors import UserError
from research.judging import frechet, kernel_distance, neighbours
from research.judging.scores import Reference, score

REAL_ND, GOOD_ND, OTHER_ND = np.random.default_rng(0).normal(size=(3, 500, 10)).astype(np.float32)


def test_every_score_stands_under_its_name():
  found = score(OTHER_ND + 0.5, Reference(REAL_ND), seed=3)
  ours_ND = OTHER_ND + 0.5
  kernel = kernel_distance.kernel_distance(ours_ND, REAL_ND, 3)
  near = neighbours.compare(neighbours.Balls.of(ours_ND), neighbours.Balls.of(REAL_ND))
  assert found == {
    "frechet_distance": frechet.frechet_distance(frechet.Gaussian.of(ours_ND), frechet.Gaussian.of(REAL_ND)),
    "kernel_distance": kernel.distance,
    "kernel_distance_error": kernel.standard_error,
    "precision": near.precision,
    "recall": near.recall,
    "density": near.density,
    "coverage": near.coverage,
  }
  assert all(type(value) is float for value in found.values())


def test_worse_generators_score_worse():
  reference = Reference(REAL_ND)
  good = score(GOOD_ND, reference)
  blurred = score(0.3 * OTHER_ND, reference)  # too narrow: safe but dull
  shifted = score(OTHER_ND + 1, reference)
  for name in ("frechet_distance", "kernel_distance"):
    assert good[name] < blurred[name]
    assert good[name] < shifted[name]
  assert blurred["precision"] > good["precision"] > shifted["precision"]
  assert blurred["recall"] < good["recall"]
  assert abs(good["kernel_distance"]) < 4 * good["kernel_distance_error"]


def test_features_of_another_judge_are_refused():
  with pytest.raises(UserError, match="4 dimensions cannot be compared with points of 10"):
    score(REAL_ND[:, :4], Reference(REAL_ND))


def test_too_few_are_refused():
  with pytest.raises(UserError, match="4 examples or more"):
    Reference(REAL_ND[:3])
