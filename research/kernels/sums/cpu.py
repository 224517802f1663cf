"""On a CPU: products with ones, by the library that multiplies matrices."""

import jax
import jax.numpy as jnp


def row_sum(x: jax.Array) -> jax.Array:
  """(…, D) → (…, 1)."""
  return x @ jnp.ones((x.shape[-1], 1), x.dtype)


def column_sum(x: jax.Array) -> jax.Array:
  """(…, D) → (D,)."""
  x_ND = x.reshape(-1, x.shape[-1])
  return (jnp.ones((1, x_ND.shape[0]), x.dtype) @ x_ND).reshape(-1)
