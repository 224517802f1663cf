"""The three operations in C++ (`kernels/native`): gathered rows times packed columns, and Winograd's F(2×2, 3×3)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import native

Pads = tuple[tuple[int, int], tuple[int, int]]


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> str | None:
  """Why it cannot run on these, or None."""
  del platform, options
  if any(dtype != jnp.float32 for dtype in dtypes):
    return f"it takes float32, not {' and '.join(sorted({str(jnp.dtype(dtype)) for dtype in dtypes}))}"
  if any(0 in shape for shape in shapes):
    return "an operand is empty"
  return native.missing()


def worth(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> bool:
  """Whether the table takes it: only on one device."""
  del shapes, dtypes, platform, options
  return native.whole()


def convolution(x_BHWC: jax.Array, kernel_HWCO: jax.Array, strides, pads: Pads, precision: Any) -> jax.Array:
  del precision
  size = [
    (have + low + high - k) // s + 1
    for have, k, s, (low, high) in zip(x_BHWC.shape[1:3], kernel_HWCO.shape[:2], strides, pads, strict=True)
  ]
  shape = jax.ShapeDtypeStruct((x_BHWC.shape[0], *size, kernel_HWCO.shape[3]), x_BHWC.dtype)
  return native.call("conv_forward", shape, x_BHWC, kernel_HWCO, strides=tuple(strides), lows=_lows(pads))


def input_gradient(
  gradient_BHWO: jax.Array, kernel_HWCO: jax.Array, image_size, strides, pads: Pads, precision: Any
) -> jax.Array:
  del precision
  shape = jax.ShapeDtypeStruct((gradient_BHWO.shape[0], *image_size, kernel_HWCO.shape[2]), gradient_BHWO.dtype)
  return native.call(
    "conv_input_gradient", shape, gradient_BHWO, kernel_HWCO, strides=tuple(strides), lows=_lows(pads)
  )


def weight_gradient(
  x_BHWC: jax.Array, gradient_BHWO: jax.Array, kernel_size, strides, pads: Pads, precision: Any
) -> jax.Array:
  del precision
  shape = jax.ShapeDtypeStruct((*kernel_size, x_BHWC.shape[3], gradient_BHWO.shape[3]), x_BHWC.dtype)
  return native.call(
    "conv_weight_gradient", shape, x_BHWC, gradient_BHWO, strides=tuple(strides), lows=_lows(pads)
  )


def _lows(pads: Pads) -> tuple[int, int]:
  return pads[0][0], pads[1][0]
