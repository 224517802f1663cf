"""The rule for a kernel: as near to the definition in float64 as XLA's own form in the same dtype, within twice."""

import jax
import jax.numpy as jnp
import numpy as np

FLOORS = {"float32": (1e-6, 1e-5), "bfloat16": (4e-3, 1e-2)}  # of values and of gradients


def check(found, by_xla, exact, dtype, *, gradient=False):
  """Each array's greatest error is at most twice XLA's, and a floor, both beside the largest exact value.

  XLA's own is at most ten floors: a mistake that both forms share would else excuse itself.
  """
  floor = FLOORS[dtype][gradient]
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(by_xla), jax.tree.leaves(exact), strict=True)
  for ours, theirs, true in pairs:
    scale = max(1.0, float(np.abs(true).max(initial=0.0)))
    error, allowed = (float(np.abs(np.asarray(each, np.float64) - true).max(initial=0.0)) for each in (ours, theirs))
    assert allowed <= 10 * floor * scale, f"XLA's form has an error of {allowed}, values up to {scale}"
    assert error <= 2 * allowed + floor * scale, f"an error of {error}, XLA's is {allowed}, values up to {scale}"


def normal(seed, *shape, dtype="float32", scale=1.0):
  """A random array, and what float64 makes of the very same numbers."""
  array = jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, dtype)
  return array, np.asarray(array.astype(jnp.float32), np.float64)
