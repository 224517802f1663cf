"""What is left to the compiler: the axes stay apart, so that a mesh may divide any of them."""

from typing import Any

import jax
from jax import lax


def product(x: jax.Array, kernel_DF: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (D, F) → (…, F)."""
  return lax.dot_general(x, kernel_DF, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


def input_gradient(gradient: jax.Array, kernel_DF: jax.Array, precision: Any) -> jax.Array:
  """(…, F) and (D, F) → (…, D)."""
  return lax.dot_general(gradient, kernel_DF, (((gradient.ndim - 1,), (1,)), ((), ())), precision=precision)


def weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (…, F) → (D, F)."""
  leading = tuple(range(x.ndim - 1))
  return lax.dot_general(x, gradient, ((leading, leading), ((), ())), precision=precision)
