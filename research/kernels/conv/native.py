"""The three operations in C++ (`kernels/native`): gathered rows times packed columns, and Winograd's F(2×2, 3×3).

They compute in float32; bfloat16 is widened before and rounded after.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import native

Pads = tuple[tuple[int, int], tuple[int, int]]


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> str | None:
  """Why it cannot run on these, or None."""
  del platform, options
  if others := {str(jnp.dtype(dtype)) for dtype in dtypes} - {"float32", "bfloat16"}:
    return f"it takes float32 and bfloat16, not {' and '.join(sorted(others))}"
  if any(0 in shape for shape in shapes):
    return "an operand is empty"
  return None


def missing() -> str | None:
  """Why it cannot run here at all, or None."""
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
  return _call("conv_forward", (x_BHWC.shape[0], *size, kernel_HWCO.shape[3]), x_BHWC, kernel_HWCO, strides, pads)


def input_gradient(
  gradient_BHWO: jax.Array, kernel_HWCO: jax.Array, image_size, strides, pads: Pads, precision: Any
) -> jax.Array:
  del precision
  shape = (gradient_BHWO.shape[0], *image_size, kernel_HWCO.shape[2])
  return _call("conv_input_gradient", shape, gradient_BHWO, kernel_HWCO, strides, pads)


def weight_gradient(
  x_BHWC: jax.Array, gradient_BHWO: jax.Array, kernel_size, strides, pads: Pads, precision: Any
) -> jax.Array:
  del precision
  shape = (*kernel_size, x_BHWC.shape[3], gradient_BHWO.shape[3])
  return _call("conv_weight_gradient", shape, x_BHWC, gradient_BHWO, strides, pads)


def _call(name: str, shape: tuple[int, ...], a: jax.Array, b: jax.Array, strides, pads: Pads) -> jax.Array:
  lows = (pads[0][0], pads[1][0])
  wide = native.call(
    name,
    jax.ShapeDtypeStruct(shape, jnp.float32),
    a.astype(jnp.float32),
    b.astype(jnp.float32),
    strides=tuple(strides),
    lows=lows,
  )
  return wide.astype(a.dtype)
