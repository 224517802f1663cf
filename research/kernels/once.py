"""An array that is computed once, for all that read it.

XLA's CPU backend fuses cheap integer work into every reader, and computes it anew for each element that is read: a
random word four times for its four bytes, a window's greatest place for each of its pixels, and all of it again in the
backward pass. A barrier says that it shall not. Before jax 0.12 barriers are gone before anything is fused, but what a
loop computes lies in memory.
"""

import functools
import math
from collections.abc import Callable

import jax
from jax import lax

BARRIERS_HOLD = jax.__version_info__ >= (0, 12)  # on a CPU


def computed(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """function(x), in memory; (B, …) → (B, …), for which each row is computed by itself."""
  if BARRIERS_HOLD:
    return _behind_a_barrier(function, x)
  loop, barrier = (functools.partial(form, function) for form in (_in_turns, _behind_a_barrier))
  return lax.platform_dependent(x, cpu=loop, default=barrier)


def _behind_a_barrier(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  return lax.optimization_barrier(function(x))


def _in_turns(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Two turns, or more where the batch is odd. As many rows as there are devices, one after the other, are a group's:
  a batch sharded over them stays where it is."""
  groups = math.gcd(x.shape[0], jax.device_count())
  size = x.shape[0] // groups
  turns = next((n for n in range(2, size + 1) if size % n == 0), 1)

  def turn(x_Gn: jax.Array) -> jax.Array:
    y_B = function(x_Gn.reshape(-1, *x.shape[1:]))
    return y_B.reshape(groups, -1, *y_B.shape[1:])

  y_TGn = lax.map(turn, x.reshape(groups, turns, -1, *x.shape[1:]).swapaxes(0, 1))
  return y_TGn.swapaxes(0, 1).reshape(x.shape[0], *y_TGn.shape[3:])
