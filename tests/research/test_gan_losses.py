"""The games' values against float64 formulas, and the penalties where the slope is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.gan_losses import LOSSES, gradient_penalty, zero_centred_penalty
from research.kernels.conv import convolve

REAL = np.array([-3.0, -0.4, 0.0, 1.5, 40.0])
FAKE = np.array([2.0, -1.2, 0.0, -0.3, -35.0])


def log1pexp(x):
  return np.logaddexp(0.0, x)


def sigmoid_entropy(x, label):
  """Cross-entropy of a sigmoid, from the probabilities themselves."""
  p = 1 / (1 + np.exp(-x))
  return -np.log(p if label else 1 - p)


EXPECTED = {
  "non_saturating": (lambda r, f: log1pexp(-r) + log1pexp(f), lambda r, f: log1pexp(-f)),
  "hinge": (lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f), lambda r, f: -f),
  "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
  "least_squares": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
  "relativistic": (lambda r, f: log1pexp(f - r), lambda r, f: log1pexp(r - f)),
  "relativistic_average": (
    lambda r, f: log1pexp(f.mean() - r) + log1pexp(f - r.mean()),
    lambda r, f: log1pexp(r.mean() - f) + log1pexp(r - f.mean()),
  ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_both_sides_are_the_formula(name):
  loss, (discriminator, generator) = LOSSES[name], EXPECTED[name]
  real, fake = jnp.asarray(REAL, jnp.float32), jnp.asarray(FAKE, jnp.float32)
  np.testing.assert_allclose(loss.discriminator(real, fake), discriminator(REAL, FAKE), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(loss.generator(real, fake), generator(REAL, FAKE), rtol=1e-5, atol=1e-6)


def test_non_saturating_is_cross_entropy_where_that_can_be_computed():
  real, fake = jnp.asarray(REAL[:4], jnp.float32), jnp.asarray(FAKE[:4], jnp.float32)
  expected = sigmoid_entropy(REAL[:4], True) + sigmoid_entropy(FAKE[:4], False)
  np.testing.assert_allclose(LOSSES["non_saturating"].discriminator(real, fake), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_each_side_pulls_its_own_way(name):
  """Lower loss: for the discriminator reals up and fakes down, for the generator fakes up. `compares` is the truth."""
  loss, real, fake = LOSSES[name], jnp.array([0.2, -0.1]), jnp.array([0.3, 0.1])
  by_real, by_fake = jax.grad(lambda r, f: loss.discriminator(r, f).sum(), (0, 1))(real, fake)
  assert (by_real < 0).all()
  assert (by_fake > 0).all()
  by_real, by_fake = jax.grad(lambda r, f: loss.generator(r, f).sum(), (0, 1))(real, fake)
  assert (by_fake < 0).all()
  assert bool((by_real != 0).any()) == loss.compares


@pytest.mark.parametrize("name", ["non_saturating", "relativistic", "relativistic_average"])
def test_a_won_game_has_no_infinities(name):
  loss, far = LOSSES[name], jnp.array([1e4])
  value, slope = jax.value_and_grad(lambda f: loss.generator(far, f).sum())(-far)
  assert np.isfinite(value)
  assert slope < -0.5  # it does not saturate: the losing generator still learns


def linear_score(w_D):
  return lambda x_BD: x_BD @ w_D


def test_penalties_of_a_linear_score():
  w_D = jnp.array([3.0, 4.0])  # slope 5 everywhere
  x_BD = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
  np.testing.assert_allclose(zero_centred_penalty(linear_score(w_D), x_BD), np.full(6, 12.5), rtol=1e-6)
  penalty = gradient_penalty(linear_score(w_D), x_BD, -x_BD, jax.random.key(0))
  np.testing.assert_allclose(penalty, np.full(6, 16.0), rtol=1e-5)
  by_weight = jax.grad(lambda w: gradient_penalty(linear_score(w), x_BD, -x_BD, jax.random.key(0)).mean())(w_D)
  np.testing.assert_allclose(by_weight, 2 * (5 - 1) * np.array([0.6, 0.8]), rtol=1e-5)  # 2(‖w‖ − 1) w/‖w‖


def test_interpolates_lie_between_each_pair():
  """A quadratic score's slope at x is x, which tells where it was looked at."""
  real, fake = jnp.full((50, 1), 2.0), jnp.full((50, 1), 5.0)
  slopes = jnp.sqrt(gradient_penalty(lambda x: 0.5 * (x**2).sum(-1), real, fake, jax.random.key(1))) + 1
  assert (slopes >= 2).all()
  assert (slopes <= 5).all()
  assert float(jnp.std(slopes)) > 0.5


def test_a_flat_score_has_a_derivative():
  slope = jax.grad(lambda w: gradient_penalty(lambda x: w * x.sum(-1), jnp.ones((2, 3)), jnp.zeros((2, 3)),
                                              jax.random.key(0)).sum())(jnp.float32(0.0))  # fmt: skip
  assert np.isfinite(slope)


def test_r1_differentiates_twice_through_our_convolution():
  """d(½‖∇ₓ score‖²)/dkernel by central differences of the penalty itself."""
  random = np.random.default_rng(0)
  x_BHWC = jnp.asarray(random.normal(size=(2, 6, 6, 2)), jnp.float32)
  kernel = jnp.asarray(random.normal(size=(4, 4, 2, 3)), jnp.float32)

  def penalty(kernel):
    def score(x):
      return jnp.tanh(convolve(x, kernel, (2, 2), ((1, 1), (1, 1)))).sum((1, 2, 3))

    return zero_centred_penalty(score, x_BHWC).sum()

  gradient = jax.grad(penalty)(kernel)
  for place in [(0, 0, 0, 0), (1, 3, 1, 2), (2, 2, 0, 1)]:
    step = jnp.zeros_like(kernel).at[place].set(3e-2)
    slope = (float(penalty(kernel + step)) - float(penalty(kernel - step))) / 6e-2
    np.testing.assert_allclose(gradient[place], slope, rtol=2e-2, atol=2e-2)  # float32 differences of values near 100
