"""How much of what is generated looks real, and how much of what is real is generated, by balls around the examples.

Every example has a ball that reaches to its k-th nearest neighbour in its own set; together a set's balls stand for the
region that it fills.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from research.judging import points

NEAREST = 3  # as in Kynkäänniemi et al. 2019; Naeem et al. 2020 take 5 for density and coverage
_CHUNK = 1 << 22  # distances at a time: 32 MB


class Neighbours(NamedTuple):
  """Shares in [0, 1], except density, which may exceed 1.

  Attributes:
    precision: of generated examples that lie in a real example's ball (Kynkäänniemi et al. 2019, equation 2).
    recall: of real examples that lie in a generated example's ball (the same).
    density: real balls around a generated example, over k; about 1 for a perfect generator (Naeem et al. 2020).
    coverage: of real examples in whose ball a generated one lies, about 1 − 2⁻ᵏ for a perfect generator (the same).
  """

  precision: float
  recall: float
  density: float
  coverage: float


@dataclasses.dataclass(frozen=True, eq=False)
class Balls:
  """A ball around each example (N, D): the squared distance to its k-th nearest neighbour, itself not counted."""

  center_ND: np.ndarray
  square_radius_N: np.ndarray
  nearest: int

  @classmethod
  def of(cls, features_ND: np.ndarray, nearest: int = NEAREST) -> Balls:
    """Raises UserError as `points.checked`, for fewer than k + 1 examples too."""
    features_ND = points.checked(features_ND, nearest + 1, f"a ball to the {nearest} nearest neighbours")
    square_radius_N = np.empty(len(features_ND))
    for rows, square_BN in _square_distances(features_ND, features_ND):
      square_BN[np.arange(len(square_BN)), np.arange(len(features_ND))[rows]] = np.inf  # it is no neighbour of itself
      square_radius_N[rows] = np.partition(square_BN, nearest - 1, axis=1)[:, nearest - 1]
    return cls(features_ND, square_radius_N, nearest)


def compare(generated: Balls, real: Balls) -> Neighbours:
  """Precision, recall, density and coverage of generated examples (N, D) against real ones (M, D).

  N × M distances are computed in float64 and 32 MB at a time. Recall depends on how many examples there are on either
  side: only values for the same N and M compare. Raises UserError for different dimensions.
  """
  points.check_alike(generated.center_ND.shape[1], real.center_ND.shape[1])
  is_real, holders = 0, 0
  is_generated_M = np.zeros(len(real.center_ND), bool)
  is_covered_M = np.zeros(len(real.center_ND), bool)
  for rows, square_BM in _square_distances(generated.center_ND, real.center_ND):
    in_real_BM = square_BM <= real.square_radius_N
    is_real += in_real_BM.any(axis=1).sum()
    holders += in_real_BM.sum()
    is_covered_M |= in_real_BM.any(axis=0)
    is_generated_M |= (square_BM <= generated.square_radius_N[rows, None]).any(axis=0)
  count = len(generated.center_ND)
  return Neighbours(
    precision=float(is_real / count),
    recall=float(is_generated_M.mean()),
    density=float(holders / (real.nearest * count)),
    coverage=float(is_covered_M.mean()),
  )


def _square_distances(x_ND: np.ndarray, y_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """(rows of x, their squared distances to all of y) in turn."""
  # |x|² + |y|² − 2 x·y loses what the points have in common, so that goes first.
  middle_D = y_MD.mean(axis=0)
  x_ND, y_MD = x_ND - middle_D, y_MD - middle_D
  x_square_N1, y_square_M1 = (np.square(z_ND).sum(axis=1, keepdims=True) for z_ND in (x_ND, y_MD))
  # All three terms in one product: to add two of them afterwards takes longer than it.
  left_NE = np.concatenate([x_ND, x_square_N1, np.ones_like(x_square_N1)], axis=1)
  right_ME = np.concatenate([-2 * y_MD, np.ones_like(y_square_M1), y_square_M1], axis=1)
  step = max(1, _CHUNK // len(y_MD))
  for start in range(0, len(x_ND), step):
    rows = slice(start, start + step)
    square_BM = left_NE[rows] @ right_ME.T
    # Equal points have distance 0 whatever the rounding: a generator that repeats itself has balls of radius 0.
    square_BM[square_BM < 1e-12 * x_square_N1[rows]] = 0.0
    yield rows, square_BM
