"""The Fréchet distance between two sets of features, each seen as one Gaussian (Heusel et al. 2017, "FID").

Its estimate from samples is too high, the more so the fewer there are (Bińkowski et al. 2018, section 3.1): only
distances from equally many samples may be compared.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from research.judging import points


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
  """Mean and covariance of `count` examples, float64."""

  mean_D: np.ndarray
  covariance_DD: np.ndarray
  count: int

  @classmethod
  def of(cls, features_ND: np.ndarray) -> Gaussian:
    """The mean and the unbiased covariance of features (N, D). Raises UserError as `points.checked`, for N < 2 too."""
    features_ND = points.checked(features_ND, 2, "a covariance")
    mean_D = features_ND.mean(axis=0)
    centered_ND = features_ND - mean_D
    return cls(mean_D, centered_ND.T @ centered_ND / (len(features_ND) - 1), len(features_ND))

  @functools.cached_property
  def root_DD(self) -> np.ndarray:
    """The symmetric square root of the covariance."""
    value_D, vector_DD = np.linalg.eigh(self.covariance_DD)
    # What is below the rounding of the largest is a direction without spread (fewer examples than dimensions, a
    # dead unit); its root would be 1e-8 of the largest where it should be 0.
    noise = len(value_D) * np.finfo(np.float64).eps * max(value_D[-1], 0.0)
    root_D = np.sqrt(np.where(value_D > noise, value_D, 0.0))
    return (vector_DD * root_D) @ vector_DD.T


def frechet_distance(ours: Gaussian, theirs: Gaussian) -> float:
  """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), at least 0 (Dowson & Landau 1982), in the features' unit squared.

  The eigenvalues of Σ₁ Σ₂ are those of the symmetric Σ₁^½ Σ₂ Σ₁^½, and their roots the singular values of Σ₁^½ Σ₂^½:
  no root of a product is taken, so nothing turns imaginary, and singular covariances are as good as others.
  Raises UserError for different dimensions.
  """
  points.check_alike(len(ours.mean_D), len(theirs.mean_D))
  between = np.square(ours.mean_D - theirs.mean_D).sum()
  overlap = np.linalg.svd(ours.root_DD @ theirs.root_DD, compute_uv=False).sum()
  within = np.trace(ours.covariance_DD) + np.trace(theirs.covariance_DD) - 2 * overlap
  return float(between + max(within, 0.0))  # rounding alone makes it negative
