"""Quality and modes on mixtures whose answer is known."""

import numpy as np
import pytest
import scipy.stats

from research.errors import UserError
from research.judging.mixtures import mixture_scores

GRID_MD = np.stack(np.meshgrid(*[np.arange(-4.0, 5, 2)] * 2), axis=-1).reshape(-1, 2)  # 25 modes
DEVIATION = 0.05


def drawn(count, centers_MD, deviation=DEVIATION, seed=0):
  random = np.random.default_rng(seed)
  return random.permutation(np.resize(centers_MD, (count, centers_MD.shape[1]))) + random.normal(
    0, deviation, (count, centers_MD.shape[1])
  )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_true_samples_have_the_chi_squares_share_of_quality(size):
  centers_MD = 100 * np.eye(4)[:, :size]
  found = mixture_scores(drawn(40_000, centers_MD), centers_MD, DEVIATION)
  share = scipy.stats.chi2.cdf(9, size)
  assert found.high_quality == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 40_000))


def test_modes_that_are_found_are_counted():
  for count in (25, 8, 1):
    found = mixture_scores(drawn(2500, GRID_MD[:count]), GRID_MD, DEVIATION)
    assert found.modes == count
    assert found.high_quality > 0.98


def test_points_everywhere_are_neither_good_nor_find_modes():
  """The modes' circles are 1.8 % of the square: 1.8 of 2,500 points in each, and 10 are needed."""
  points_ND = np.random.default_rng(0).uniform(-5, 5, (2500, 2))
  share = 25 * np.pi * (3 * DEVIATION) ** 2 / 100
  found = mixture_scores(points_ND, GRID_MD, DEVIATION)
  assert found.high_quality == pytest.approx(share, rel=0.5)
  assert found.modes == 0


@pytest.mark.parametrize(("good", "modes"), [(10, 2), (9, 1)])
def test_a_mode_needs_a_tenth_of_its_fair_share(good, modes):
  """700 points and 7 modes: 100 are fair, 10 enough. (0.1 · 70 is more than 7 in floating point.)"""
  centers_MD = 10.0 * np.arange(7)[:, None]
  points_ND = np.concatenate([np.full((good, 1), 10.0), np.zeros((700 - good, 1))])
  assert mixture_scores(points_ND, centers_MD, 1.0) == (1.0, modes)


def test_three_deviations_are_the_limit():
  found = mixture_scores(np.array([[3.0, 0], [0, -3.001], [10, 0]]), np.zeros((1, 2)), 1.0)
  assert found == (pytest.approx(1 / 3), 1)


@pytest.mark.parametrize(
  ("points", "centers", "deviation", "complaint"),
  [
    (np.zeros((0, 2)), GRID_MD, 1.0, "takes 1 examples or more, and there are 0"),
    (np.zeros((5, 3)), GRID_MD, 1.0, "3 dimensions cannot be compared with points of 2"),
    (np.full((5, 2), np.nan), GRID_MD, 1.0, "NaN or infinite"),
    (np.zeros((5, 2)), GRID_MD, 0.0, "standard deviation is positive, not 0"),
  ],
)
def test_what_makes_no_sense_is_refused(points, centers, deviation, complaint):
  with pytest.raises(UserError, match=complaint):
    mixture_scores(points, centers, deviation)
