"""On a CPU: one product of two matrices, which XLA hands to its library as they lie."""

from typing import Any

import jax
from jax import lax


def weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (…, F) → (D, F)."""
  x_ND, gradient_NF = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  return lax.dot_general(x_ND, gradient_NF, (((0,), (0,)), ((), ())), precision=precision)
