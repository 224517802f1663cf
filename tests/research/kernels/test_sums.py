"""Sums over rows and columns against their definitions, and where they are products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.sums import add_last, column_sum, row_sum


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 8), (2, 2, 3, 1)], ids=str)
def test_sums_and_their_gradients(shape):
  x = jnp.asarray(3 * np.random.default_rng(0).normal(size=shape) + 1, jnp.float32)
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


def test_a_bias_adds_and_its_gradient_is_summed_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 700, 5)), jnp.bfloat16)
  bias, g = x[0, 0], 3 * x
  y, slopes = jax.jit(lambda x, b: (add_last(x, b), jax.vjp(add_last, x, b)[1](g)))(x, bias)
  np.testing.assert_array_equal(y, x + bias[None, None])
  np.testing.assert_array_equal(slopes[0], g)
  exact = np.asarray(g.astype(jnp.float32), np.float64).sum((0, 1))
  assert slopes[1].dtype == jnp.bfloat16
  # One rounding to 8 bits, of sums that take 2,100 terms.
  np.testing.assert_allclose(slopes[1].astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)
