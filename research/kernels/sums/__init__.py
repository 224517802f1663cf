"""Sums over the last axis and over all others, which XLA's CPU backend takes longer for than for a matrix product."""

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


row_sum.defvjp(lambda x: (row_sum(x), x), lambda x, g: (jnp.broadcast_to(g, x.shape),))
column_sum.defvjp(lambda x: (column_sum(x), x), lambda x, g_D: (jnp.broadcast_to(last(g_D, x), x.shape),))
