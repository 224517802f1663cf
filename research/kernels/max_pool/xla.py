"""What is left to the compiler: reduce-window, and select-and-scatter for its gradient."""

import jax
import numpy as np
from jax import lax

from research.kernels.max_pool.windows import Windows


def forward(x_BHWC: jax.Array, *, windows: Windows) -> jax.Array:
  """→ (B, H', W', C)."""
  least = np.asarray(-np.inf, x_BHWC.dtype)  # a number, by which jax knows the reduction as a maximum
  pads = ((0, 0), *windows.pads, (0, 0))
  return lax.reduce_window(x_BHWC, least, lax.max, (1, *windows.window, 1), (1, *windows.strides, 1), pads)


def gradient(gradient_BHWC: jax.Array, x_BHWC: jax.Array, place: jax.Array, *, windows: Windows) -> jax.Array:
  """→ (B, H, W, C). What computes the places is not read and so not computed."""
  del place
  return jax.vjp(lambda x: forward(x, windows=windows), x_BHWC)[1](gradient_BHWC)[0]
