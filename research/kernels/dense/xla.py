"""What is left to the compiler: the axes stay apart, so that a mesh may divide any of them."""

from typing import Any

import jax
from jax import lax


def weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (…, F) → (D, F)."""
  leading = tuple(range(x.ndim - 1))
  return lax.dot_general(x, gradient, ((leading, leading), ((), ())), precision=precision)
