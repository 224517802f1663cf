"""The kernel distance between two sets of features: the squared maximum mean discrepancy of the cubic polynomial kernel
(Bińkowski et al. 2018, "KID"). It is unbiased at any number of samples, so it may be negative, and says how sure it is.
"""

from typing import NamedTuple

import numpy as np

from research.judging import points

BLOCK = 1000  # examples, as in the paper
LEAST_BLOCKS = 10  # fewer tell too little about their spread


class KernelDistance(NamedTuple):
  """The squared discrepancy and its standard error."""

  distance: float
  standard_error: float


def kernel_distance(ours_ND: np.ndarray, theirs_MD: np.ndarray, seed: int = 0) -> KernelDistance:
  """The unbiased estimate of E k(x, x') + E k(y, y') − 2 E k(x, y), with k(x, y) = (x·y / D + 1)³.

  Both sets are shuffled and cut into equally many disjoint blocks, which together hold every example: 10, or as many as
  keep the larger set's at 1,000 examples or so. The distance is the mean of the blocks' estimates. As the blocks are
  independent, their deviation over the root of their number is its standard error. The paper draws its subsets with
  replacement; those overlap, and their spread says less than it seems to.

  Args:
    ours_ND: (N, D).
    theirs_MD: (M, D).
    seed: of the shuffling.

  Raises:
    UserError: fewer than 4 examples (two blocks of two), different dimensions, NaN or infinite features.
  """
  ours_ND = points.checked(ours_ND, 4, "a kernel distance")
  theirs_MD = points.checked(theirs_MD, 4, "a kernel distance")
  points.check_alike(ours_ND.shape[1], theirs_MD.shape[1])
  smaller, larger = sorted((len(ours_ND), len(theirs_MD)))
  blocks = min(max(LEAST_BLOCKS, larger // BLOCK), smaller // 2)
  random = np.random.default_rng(seed)
  cut = [np.array_split(random.permutation(features), blocks) for features in (ours_ND, theirs_MD)]
  found_K = np.array([discrepancy(x_BD, y_BD) for x_BD, y_BD in zip(*cut, strict=True)])
  return KernelDistance(float(found_K.mean()), float(found_K.std(ddof=1) / np.sqrt(blocks)))


def discrepancy(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
  """The unbiased squared discrepancy of all pairs, none of an example with itself (Gretton et al. 2012, lemma 6)."""
  between = _kernel(x_ND, y_MD).mean()
  return float(_mean_of_pairs(x_ND) + _mean_of_pairs(y_MD) - 2 * between)


def _mean_of_pairs(x_ND: np.ndarray) -> float:
  kernel_NN, count = _kernel(x_ND, x_ND), len(x_ND)
  return (kernel_NN.sum() - np.trace(kernel_NN)) / (count * (count - 1))


def _kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
  return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3
