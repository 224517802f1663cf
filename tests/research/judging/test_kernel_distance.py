"""The kernel distance against double loops, and against the moments that give it exactly for Gaussians."""

import numpy as np
import pytest

from research.errors import UserError
from research.judging.kernel_distance import discrepancy, kernel_distance

SIZE = 6
MEAN_D = np.linspace(-0.6, 0.9, SIZE)
ROOT_DD = np.eye(SIZE) * 1.3 + np.eye(SIZE, k=-1) * 0.5


def moments(mean_D, covariance_DD):
  """E x, E x xᵀ and E x ⊗ x ⊗ x of a Gaussian."""
  mixed = np.einsum("i,jk->ijk", mean_D, covariance_DD)
  third = np.einsum("i,j,k->ijk", mean_D, mean_D, mean_D) + mixed + mixed.transpose(1, 0, 2) + mixed.transpose(1, 2, 0)
  return mean_D, covariance_DD + np.outer(mean_D, mean_D), third


def expected_kernel(x, y):
  """E (x·y / D + 1)³ for independent x and y: each power of x·y is the product of their moments."""
  first, second, third = (float((a * b).sum()) / SIZE**power for power, (a, b) in enumerate(zip(x, y, strict=True), 1))
  return 1 + 3 * first + 3 * second + third


def population_distance():
  x, y = moments(np.zeros(SIZE), np.eye(SIZE)), moments(MEAN_D, ROOT_DD @ ROOT_DD.T)
  return expected_kernel(x, x) + expected_kernel(y, y) - 2 * expected_kernel(x, y)


def samples(random, count, *, equal):
  x_ND, y_ND = random.normal(size=(2, count, SIZE))
  return (x_ND, y_ND) if equal else (x_ND, MEAN_D + y_ND @ ROOT_DD.T)


def test_all_pairs_of_an_example_with_another():
  random = np.random.default_rng(0)
  x_ND, y_MD = random.normal(size=(7, 5)), random.normal(size=(9, 5))

  def kernel(a_D, b_D):
    return (sum(a * b for a, b in zip(a_D, b_D, strict=True)) / 5 + 1) ** 3

  def within(z_ND):
    return np.mean([kernel(a, b) for i, a in enumerate(z_ND) for j, b in enumerate(z_ND) if i != j])

  expected = within(x_ND) + within(y_MD) - 2 * np.mean([kernel(a, b) for a in x_ND for b in y_MD])
  assert discrepancy(x_ND, y_MD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "equal"), [(40, True), (40, False), (43, False)])
def test_it_is_unbiased_and_knows_its_error(count, equal):
  """Over 400 draws the mean is the population's value, and the spread is the error that was told.

  The spread of 400 is known to 4 %, somewhat less well as the tails are heavy: a quarter either way is allowed.
  """
  random = np.random.default_rng(1)
  found = np.array([kernel_distance(*samples(random, count, equal=equal)) for _ in range(400)])
  true = 0.0 if equal else population_distance()
  spread = found[:, 0].std(ddof=1)
  assert abs(found[:, 0].mean() - true) < 4 * spread / 20
  if equal:
    assert (found[:, 0] < 0).mean() > 0.3
  else:
    assert true > 3 * spread / 20, "a bias would not show"
  assert 0.8 < np.sqrt(np.square(found[:, 1]).mean()) / spread < 1.25


def test_many_samples_give_the_populations_value_in_blocks_of_a_thousand():
  """Far from zero the error falls as 1 / √N whatever the blocks: from 40 examples to 12,000 by 17."""
  x_ND, y_ND = samples(np.random.default_rng(2), 12_000, equal=False)
  distance, error = kernel_distance(x_ND, y_ND)
  assert abs(distance - population_distance()) < 4 * error
  assert error < 0.05 * distance


@pytest.mark.parametrize("count", [20, 1000])
def test_sets_of_different_sizes(count):
  random = np.random.default_rng(3)
  found = np.array(
    [kernel_distance(random.normal(size=(count, SIZE)), random.normal(size=(90, SIZE))) for _ in range(100)]
  )
  assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 10


def test_sorted_examples_are_shuffled_first():
  """Real examples may come class by class; blocks of a single class would look far from a fair generator's."""
  random = np.random.default_rng(4)
  x_ND, y_ND = random.normal(size=(2, 400, SIZE)) + 3 * random.choice([-1, 1], size=(2, 400, 1))
  distance, error = kernel_distance(x_ND[np.argsort(x_ND[:, 0])], y_ND)
  assert abs(distance) < 4 * error


def test_the_seed_chooses_the_blocks_and_nothing_else():
  x_ND, y_ND = samples(np.random.default_rng(5), 300, equal=False)
  first, again, other = (kernel_distance(x_ND, y_ND, seed) for seed in (0, 0, 1))
  assert first == again
  assert first != other
  assert abs(first.distance - other.distance) < 4 * first.standard_error


@pytest.mark.parametrize(
  ("ours", "theirs", "complaint"),
  [
    (np.zeros((3, 2)), np.zeros((9, 2)), "takes 4 examples or more, and there are 3"),
    (np.zeros((9, 2)), np.zeros((0, 2)), "there are 0"),
    (np.zeros((9, 2)), np.zeros((9, 3)), "2 dimensions cannot be compared with points of 3"),
    (np.full((9, 2), np.inf), np.zeros((9, 2)), "NaN or infinite"),
  ],
)
def test_what_is_no_pair_of_samples_is_refused(ours, theirs, complaint):
  with pytest.raises(UserError, match=complaint):
    kernel_distance(ours, theirs)


def test_four_examples_are_enough():
  x_ND, y_ND = samples(np.random.default_rng(6), 4, equal=False)
  assert np.isfinite(kernel_distance(x_ND, y_ND)).all()
