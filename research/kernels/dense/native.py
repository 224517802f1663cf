"""The weight gradient in C++ (`kernels/native`): that of a convolution of one row of pixels with a kernel of 1×1.

The product and the input gradient are XLA's everywhere: it joins them with what comes before and after, and a call of
ours made whole updates slower.
"""

from typing import Any

import jax

from research.kernels.conv import native as conv

missing, limits, worth = conv.missing, conv.limits, conv.worth


def weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (…, F) → (D, F)."""
  x_11ND, gradient_11NF = (each.reshape(1, 1, -1, each.shape[-1]) for each in (x, gradient))
  return conv.weight_gradient(x_11ND, gradient_11NF, (1, 1), (1, 1), ((0, 0), (0, 0)), precision)[0, 0]
