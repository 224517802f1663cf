"""What is left to the compiler."""

import jax


def row_sum(x: jax.Array) -> jax.Array:
  """(…, D) → (…, 1)."""
  return x.sum(axis=-1, keepdims=True)


def column_sum(x: jax.Array) -> jax.Array:
  """(…, D) → (D,)."""
  return x.sum(axis=tuple(range(x.ndim - 1)))
