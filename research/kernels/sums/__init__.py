"""Sums over the last axis and over all others, which XLA's CPU backend takes longer for than for a matrix product.

In bfloat16 it takes ten times as long again for what a bias' gradient sums: `add_last` sums in float32.
"""

import jax
import jax.numpy as jnp

from research.kernels.choice import Form, Op
from research.kernels.sums import cpu, xla

_ROWS = Op("sums.rows", forms={"cpu": Form(cpu.row_sum), "xla": Form(xla.row_sum)}, table={"cpu": ("cpu",)})
_COLUMNS = Op("sums.columns", forms={"cpu": Form(cpu.column_sum), "xla": Form(xla.column_sum)}, table={"cpu": ("cpu",)})


@jax.custom_vjp
def row_sum(x: jax.Array) -> jax.Array:
  """Over the last axis, which stays: (…, D) → (…, 1)."""
  return _ROWS(x)


@jax.custom_vjp
def column_sum(x: jax.Array) -> jax.Array:
  """Over all axes but the last: (…, D) → (D,)."""
  return _COLUMNS(x)


def last(values_D: jax.Array, like: jax.Array) -> jax.Array:
  """(D,) → (1, …, 1, D), of the rank of `like`."""
  return values_D.reshape((1,) * (like.ndim - 1) + (-1,))


@jax.custom_vjp
def add_last(x: jax.Array, values_D: jax.Array) -> jax.Array:
  """x + values over the last axis: (…, D), (D,) of the same dtype → (…, D). Differentiates in reverse mode only."""
  return x + last(values_D, x)


row_sum.defvjp(lambda x: (row_sum(x), x), lambda x, g: (jnp.broadcast_to(g, x.shape),))
column_sum.defvjp(lambda x: (column_sum(x), x), lambda x, g_D: (jnp.broadcast_to(last(g_D, x), x.shape),))
add_last.defvjp(
  lambda x, values_D: (add_last(x, values_D), None),
  lambda _, g: (g, column_sum(g.astype(jnp.float32)).astype(g.dtype)),
)
