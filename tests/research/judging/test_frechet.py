"""The Fréchet distance against Gaussians whose distance is known, and against SciPy's root of the product."""

import numpy as np
import pytest
import scipy.linalg

from research.errors import UserError
from research.judging.frechet import Gaussian, frechet_distance


def covariance(size, seed, rank=None):
  """A covariance with eigenvalues from about 0.01 to 30, or of a lower rank."""
  random = np.random.default_rng(seed)
  factor = random.normal(size=(size, rank or 3 * size)) * np.exp(random.normal(size=(size, 1)))
  return factor @ factor.T / (rank or 3 * size)


def gaussian(mean_D, covariance_DD):
  return Gaussian(np.asarray(mean_D, np.float64), np.asarray(covariance_DD, np.float64), 0)


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_round_gaussians(scale):
  """|m|² + D (s − 1)² between N(0, I) and N(m, s² I)."""
  mean_D = np.linspace(-1, 2, 7)
  distance = frechet_distance(gaussian(np.zeros(7), np.eye(7)), gaussian(mean_D, scale**2 * np.eye(7)))
  assert distance == pytest.approx(mean_D @ mean_D + 7 * (scale - 1) ** 2, rel=1e-12)


def test_covariances_that_do_not_commute():
  a_DD, b_DD = covariance(12, 0), covariance(12, 1)
  assert np.abs(a_DD @ b_DD - b_DD @ a_DD).max() > 0.1
  expected = np.trace(a_DD + b_DD - 2 * scipy.linalg.sqrtm(a_DD @ b_DD))
  found = frechet_distance(gaussian(np.zeros(12), a_DD), gaussian(np.zeros(12), b_DD))
  assert found == pytest.approx(expected, rel=1e-9)


def test_covariances_that_commute():
  """With common eigenvectors it is Σ (√a − √b)² over the eigenvalues."""
  axes_DD = np.linalg.eigh(covariance(9, 2))[1]
  a_D, b_D = np.linspace(0.0, 3.0, 9), np.linspace(5.0, 0.1, 9)
  found = frechet_distance(*(gaussian(np.zeros(9), (axes_DD * value_D) @ axes_DD.T) for value_D in (a_D, b_D)))
  assert found == pytest.approx(np.square(np.sqrt(a_D) - np.sqrt(b_D)).sum(), rel=1e-9)


def test_covariances_of_rank_one():
  """tr (u uᵀ v vᵀ)^½ = |u·v|, where SciPy's root fails: the product is nilpotent when u·v is 0."""
  u_D, v_D = np.random.default_rng(0).normal(size=(2, 30))
  for other_D in (v_D, v_D - u_D * (u_D @ v_D) / (u_D @ u_D)):
    found = frechet_distance(
      gaussian(np.zeros(30), np.outer(u_D, u_D)), gaussian(np.zeros(30), np.outer(other_D, other_D))
    )
    # Rounding noise of every other direction would cost 1e-7 of it, its root being 1e-8.
    assert found == pytest.approx(u_D @ u_D + other_D @ other_D - 2 * abs(u_D @ other_D), rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 5000])
def test_moments_are_numpys(count):
  features_ND = np.random.default_rng(1).normal(3, 2, (count, 20)).astype(np.float32)
  found = Gaussian.of(features_ND)
  np.testing.assert_allclose(found.mean_D, features_ND.astype(np.float64).mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.covariance_DD, np.cov(features_ND.astype(np.float64).T), rtol=1e-9, atol=1e-12)
  assert found.count == count


def test_the_estimate_from_samples_converges():
  random = np.random.default_rng(2)
  mean_D, root_DD = np.array([1.0, 0.0, -0.5]), np.array([[1.5, 0, 0], [0.5, 1, 0], [0, -0.4, 0.7]])
  true = frechet_distance(gaussian(np.zeros(3), np.eye(3)), gaussian(mean_D, root_DD @ root_DD.T))
  errors = []
  for count in (200, 200_000):
    x_ND, y_ND = random.normal(size=(2, count, 3))
    errors.append(abs(frechet_distance(Gaussian.of(x_ND), Gaussian.of(mean_D + y_ND @ root_DD.T)) / true - 1))
  assert errors[1] < 0.01  # 2 % at 200 examples would be luck; at 200,000 the deviation is 0.4 %
  assert errors[1] < errors[0]


@pytest.mark.parametrize("count", [5, 400])
def test_it_is_a_squared_distance(count):
  """Zero to itself, symmetric, blind to rotation and shift, quadratic in the unit: with fewer examples than dimensions
  and with dead units too."""
  random = np.random.default_rng(3)
  x_ND, y_ND = np.maximum(random.normal(size=(2, count, 24)), 0)
  x_ND[:, :4] = y_ND[:, :4] = 0
  turn_DD = np.linalg.qr(random.normal(size=(24, 24)))[0]

  def distance(x_ND, y_ND):
    return frechet_distance(Gaussian.of(x_ND), Gaussian.of(y_ND))

  whole = distance(x_ND, y_ND)
  assert 0 <= distance(x_ND, x_ND) < 1e-11
  assert distance(y_ND, x_ND) == pytest.approx(whole, rel=1e-9)
  assert distance(x_ND @ turn_DD + 50, y_ND @ turn_DD + 50) == pytest.approx(whole, rel=1e-6)
  assert distance(x_ND * 1e15, y_ND * 1e15) == pytest.approx(whole * 1e30, rel=1e-9)
  assert isinstance(whole, float)


def test_constant_features_have_only_means():
  found = frechet_distance(Gaussian.of(np.ones((5, 3))), Gaussian.of(np.full((9, 3), 3.0)))
  assert found == pytest.approx(12.0, rel=1e-12)


@pytest.mark.parametrize(
  ("features", "complaint"),
  [
    (np.zeros((1, 3)), "takes 2 examples or more, and there are 1"),
    (np.zeros(8), r"not of an array of shape \(8,\)"),
    (np.array([[0.0, np.nan], [1, 2]]), "NaN or infinite"),
  ],
)
def test_what_is_no_sample_is_refused(features, complaint):
  with pytest.raises(UserError, match=complaint):
    Gaussian.of(features)


def test_other_dimensions_are_refused():
  with pytest.raises(UserError, match="3 dimensions cannot be compared with points of 4"):
    frechet_distance(gaussian(np.zeros(3), np.eye(3)), gaussian(np.zeros(4), np.eye(4)))
