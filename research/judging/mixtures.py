"""Points from a known mixture of Gaussians: how many are good, and how many of the modes are found."""

from typing import NamedTuple

import numpy as np

from research.errors import UserError
from research.judging import points

DEVIATIONS = 3  # a point further from its mode is no good one
PARTS = 10  # a mode needs one part in ten of its fair share


class MixtureScores(NamedTuple):
  """The share of good points in [0, 1], and the number of modes found."""

  high_quality: float
  modes: int


def mixture_scores(points_ND: np.ndarray, centers_MD: np.ndarray, deviation: float) -> MixtureScores:
  """Quality and modes, as in VEEGAN (Srivastava et al. 2017, section 5.1), but stricter about modes.

  A point is of high quality within three standard deviations of the nearest centre: 98.9 % of true samples in two
  dimensions. A mode counts as found with a tenth of its fair share N / M of high-quality points. In the literature one
  point will do, which strays of a collapsed generator reach among thousands.

  Args:
    points_ND: (N, D), generated.
    centers_MD: (M, D), the modes' means, equally likely.
    deviation: the modes' standard deviation in each dimension, in the points' unit.

  Raises:
    UserError: no points or centres, different dimensions, NaN or infinite numbers, a deviation that is not positive.
  """
  if not deviation > 0:
    raise UserError(f"metrics: a mixture's standard deviation is positive, not {deviation}")
  points_ND = points.checked(points_ND, 1, "a mixture's quality")
  centers_MD = points.checked(centers_MD, 1, "a mixture's quality")
  points.check_alike(points_ND.shape[1], centers_MD.shape[1])
  square_NM = np.square(points_ND[:, None] - centers_MD).sum(axis=2)
  is_good_N = square_NM.min(axis=1) <= (DEVIATIONS * deviation) ** 2
  good_M = np.bincount(square_NM.argmin(axis=1)[is_good_N], minlength=len(centers_MD))
  is_found_M = PARTS * len(centers_MD) * good_M >= len(points_ND)  # in whole numbers, so that a tenth is a tenth
  return MixtureScores(float(is_good_N.mean()), int(is_found_M.sum()))
