"""The three products in C++ (`kernels/native`): those of a convolution of one row of pixels with a kernel of 1×1."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels.conv import native as conv

missing, limits, worth = conv.missing, conv.limits, conv.worth

_ROWS = 512  # below which packing the kernel takes a share of the product that is not repaid


def worth_product(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> bool:
  """Whether the table takes it for a product with the kernel: many rows of float32, on one device.

  XLA joins a small product with what comes before and after, and has the processor's own products of bfloat16.
  """
  many = math.prod(shapes[0][:-1]) >= _ROWS
  return many and set(map(jnp.dtype, dtypes)) == {jnp.dtype("float32")} and worth(shapes, dtypes, platform, **options)


def product(x: jax.Array, kernel_DF: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (D, F) → (…, F)."""
  x_11ND, kernel_11DF = _row(x), kernel_DF[None, None]
  return conv.convolution(x_11ND, kernel_11DF, *_WHOLE, precision).reshape(*x.shape[:-1], -1)


def input_gradient(gradient: jax.Array, kernel_DF: jax.Array, precision: Any) -> jax.Array:
  """(…, F) and (D, F) → (…, D)."""
  gradient_11NF, kernel_11DF = _row(gradient), kernel_DF[None, None]
  x_11ND = conv.input_gradient(gradient_11NF, kernel_11DF, gradient_11NF.shape[1:3], *_WHOLE, precision)
  return x_11ND.reshape(*gradient.shape[:-1], -1)


def weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any) -> jax.Array:
  """(…, D) and (…, F) → (D, F)."""
  return conv.weight_gradient(_row(x), _row(gradient), (1, 1), *_WHOLE, precision)[0, 0]


_WHOLE = ((1, 1), ((0, 0), (0, 0)))  # strides and pads


def _row(x: jax.Array) -> jax.Array:
  """(…, D) → (1, 1, N, D)."""
  return x.reshape(1, 1, -1, x.shape[-1])
