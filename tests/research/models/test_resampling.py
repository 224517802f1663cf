"""Pooling and its gradient beside flax's, resampling beside jax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models import resampling


def random_images(shape=(4, 6, 8, 3)):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(4, 6, 8, 3), (2, 7, 5, 1)])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_and_its_gradient_are_flaxs(kind, shape):
  images = random_images(shape)
  flax_pool = {"max": nn.max_pool, "avg": nn.avg_pool}[kind]

  def value_and_gradient(pool):
    with jax.numpy_dtype_promotion("standard"):  # flax's average divides by an int
      return jax.jit(jax.value_and_grad(lambda x: jnp.sin(pool(x)).sum()))(images)

  ours = value_and_gradient(lambda x: resampling.pool_2x2(x, kind))
  theirs = value_and_gradient(lambda x: flax_pool(x, (2, 2), (2, 2)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_of_values_that_tie_the_first_has_the_poolings_gradient():
  gradient = jax.grad(lambda x: resampling.pool_2x2(x, "max").sum())(jnp.zeros((1, 2, 2, 1)))
  np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])


def test_pooling_compiles_to_no_select_and_scatter():
  gradient = jax.jit(jax.grad(lambda x: resampling.pool_2x2(x, "max").sum()))
  assert "select-and-scatter" not in gradient.lower(random_images()).compile().as_text()


@pytest.mark.parametrize(("how", "size"), [({"up": 2}, (12, 16)), ({"down": 2}, (3, 4))])
def test_resampling_by_two_is_jaxs_linear_one_away_from_the_edges(how, size):
  images = random_images((2, 6, 8, 3))
  ours = jax.jit(lambda x: resampling.resample(x, **how))(images)
  theirs = jax.jit(lambda x: jax.image.resize(x, (2, *size, 3), "linear"))(images)
  np.testing.assert_allclose(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)
  assert ours.shape == theirs.shape


@pytest.mark.parametrize(
  ("up", "down", "blur"), [(3, 1, (1, 2, 3, 2, 1)), (1, 3, (1, 1, 1, 1, 1)), (2, 3, (1, 4, 6, 4, 1))]
)
def test_resampling_has_the_size_that_it_says_and_keeps_what_is_constant(up, down, blur):
  y = resampling.resample(jnp.ones((1, 12, 18, 1)), up=up, down=down, blur=blur)
  assert y.shape == (1, 12 * up // down, 18 * up // down, 1)
  edge = -(-len(blur) // (2 * down))
  np.testing.assert_allclose(y[:, edge:-edge, edge:-edge], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
  ("how", "blur"), [({"up": 2}, (1, 3, 3, 1)), ({"up": 3}, (1, 2, 3, 2, 1)), ({"down": 3}, (1, 2, 3, 2, 1))]
)
def test_resampling_shifts_nothing(how, blur):
  """A mirror image's is the mirror image of it."""
  images = random_images((2, 6, 9, 3))
  resample = jax.jit(lambda x: resampling.resample(x, **how, blur=blur))
  np.testing.assert_allclose(resample(images[:, ::-1, ::-1]), resample(images)[:, ::-1, ::-1], rtol=1e-5, atol=1e-6)


def test_an_unknown_pooling_is_the_users_error():
  with pytest.raises(UserError, match="no pooling 'mean'"):
    resampling.pool_2x2(random_images(), "mean")
