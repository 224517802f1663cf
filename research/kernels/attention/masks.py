"""Which keys a query sees, for a part of the queries and of the keys; both forms ask here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class How(NamedTuple):
  """As in `attention`; scale is a number. `sums`: whether the log-sum-exp has a gradient, for the backward pass."""

  causal: bool
  window: int
  softcap: float
  scale: float
  sums: bool = True


def seen(
  query_c: jax.Array, key_n: jax.Array, how: How, segments: tuple[jax.Array, ...] = ()
) -> jax.Array | None:
  """Bool (B or 1, c, n), or None where all are seen.

  Args:
    query_c: int32 places of the queries, in the order of the keys' places.
    key_n: int32 places of the keys.
    how: causal and window.
    segments: () or int32 (B, c) of these queries and (B, n) of these keys.
  """
  query_1c1, key_11n = query_c[None, :, None], key_n[None, None, :]
  masks = []
  if how.causal:
    masks.append(key_11n <= query_1c1)
  if how.window:
    masks.append(key_11n > query_1c1 - how.window)
    if not how.causal:
      masks.append(key_11n < query_1c1 + how.window)
  if segments:
    query_Bc1, key_B1n = segments[0][:, :, None], segments[1][:, None, :]
    masks.append((query_Bc1 == key_B1n) & (key_B1n >= 0))
  if not masks:
    return None
  found = masks[0]
  for mask in masks[1:]:
    found = found & mask
  return found


def capped(scores: jax.Array, how: How) -> jax.Array:
  """The soft cap."""
  return how.softcap * jnp.tanh(scores / how.softcap) if how.softcap else scores
