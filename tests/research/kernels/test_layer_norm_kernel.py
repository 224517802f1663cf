"""Layer normalisation and the sums that it is made of, against their definitions and autodiff's derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.layer_norm import layer_norm, reference
from research.kernels.sums import column_sum, row_sum

SHAPES = [(7, 5), (2, 3, 8), (2, 2, 3, 1)]


def arrays(shape):
  random = np.random.default_rng(0)
  values = [3 * random.normal(size=shape) + 1, random.normal(size=shape[-1:]), random.normal(size=shape[-1:])]
  return [jnp.asarray(value, jnp.float32) for value in values]


def plain(x, scale_D, bias_D, epsilon):
  """The same, left to autodiff."""
  shape = (1,) * (x.ndim - 1) + (-1,)
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / jnp.sqrt(variance + epsilon) * scale_D.reshape(shape) + bias_D.reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_definition(shape):
  x, scale_D, bias_D = arrays(shape)
  found = jax.jit(layer_norm, static_argnums=3)(x, scale_D, bias_D, 1e-3)
  np.testing.assert_allclose(found, reference.layer_norm(x, scale_D, bias_D, 1e-3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_and_second_derivatives_are_autodiffs(shape):
  def penalty(function):
    def squared(*arguments):
      gradients = jax.grad(lambda *a: jnp.sin(function(*a, 1e-2)).sum(), (0, 1, 2))(*arguments)
      return sum((gradient**2).sum() for gradient in gradients), gradients

    return jax.jit(jax.grad(squared, (0, 1, 2), has_aux=True))(*arrays(shape))

  ours, theirs = penalty(layer_norm), penalty(plain)
  # Gradients of order ten in float32, of sums taken in another order.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, theirs)


def test_a_mean_a_thousand_times_the_spread_loses_no_digits():
  x = 1000.0 + jnp.asarray(np.random.default_rng(1).normal(size=(4, 64)), jnp.float32)
  found = jax.jit(layer_norm, static_argnums=3)(x, jnp.ones(64), jnp.zeros(64), 1e-5)
  np.testing.assert_allclose(found, reference.layer_norm(x, np.ones(64), np.zeros(64), 1e-5), atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_their_gradients(shape):
  x = arrays(shape)[0]
  exact, leading = np.asarray(x, np.float64), tuple(range(x.ndim - 1))
  np.testing.assert_allclose(jax.jit(row_sum)(x), exact.sum(-1, keepdims=True), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(jax.jit(column_sum)(x), exact.sum(leading), rtol=1e-5, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda x: (row_sum(x) ** 2).sum() + (column_sum(x) ** 2).sum()))(x)
  rows, columns = x.sum(-1, keepdims=True), x.sum(leading, keepdims=True)
  np.testing.assert_allclose(gradient, 2 * jnp.broadcast_to(rows, x.shape) + 2 * columns, rtol=1e-5, atol=1e-4)


def test_only_a_cpu_sums_by_products():
  program = jax.jit(row_sum).trace(jnp.ones((4, 8)))
  assert "dot_general" in program.lower(lowering_platforms=("cpu",)).as_text()
  assert "dot_general" not in program.lower(lowering_platforms=("tpu",)).as_text()
