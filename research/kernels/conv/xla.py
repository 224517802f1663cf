"""The three operations as XLA has them: for GPUs and TPUs, and the forward pass everywhere."""

from typing import Any

import jax
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolution(x_BHWC: jax.Array, kernel_HWCO: jax.Array, strides, pads, precision: Any) -> jax.Array:
  return lax.conv_general_dilated(x_BHWC, kernel_HWCO, strides, pads, dimension_numbers=DIMENSIONS, precision=precision)


def input_gradient(
  gradient_BHWO: jax.Array, kernel_HWCO: jax.Array, image_size, strides, pads, precision: Any
) -> jax.Array:
  x = jax.ShapeDtypeStruct((gradient_BHWO.shape[0], *image_size, kernel_HWCO.shape[2]), gradient_BHWO.dtype)
  transpose = jax.linear_transpose(lambda x: convolution(x, kernel_HWCO, strides, pads, precision), x)
  return transpose(gradient_BHWO)[0]


def weight_gradient(
  x_BHWC: jax.Array, gradient_BHWO: jax.Array, kernel_size, strides, pads, precision: Any
) -> jax.Array:
  kernel = jax.ShapeDtypeStruct((*kernel_size, x_BHWC.shape[3], gradient_BHWO.shape[3]), x_BHWC.dtype)
  transpose = jax.linear_transpose(lambda kernel: convolution(x_BHWC, kernel, strides, pads, precision), kernel)
  return transpose(gradient_BHWO)[0]
