"""The three operations as XLA has them: for GPUs and TPUs, and the forward pass everywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.choice import together

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolution(x_BHWC: jax.Array, kernel_HWCO: jax.Array, strides, pads, precision: Any) -> jax.Array:
  return lax.conv_general_dilated(x_BHWC, kernel_HWCO, strides, pads, dimension_numbers=DIMENSIONS, precision=precision)


def input_gradient(
  gradient_BHWO: jax.Array, kernel_HWCO: jax.Array, image_size, strides, pads, precision: Any
) -> jax.Array:
  shape = (gradient_BHWO.shape[0], *image_size, kernel_HWCO.shape[2])
  return transposed(lambda x: convolution(x, kernel_HWCO, strides, pads, precision), shape, gradient_BHWO)


def weight_gradient(
  x_BHWC: jax.Array, gradient_BHWO: jax.Array, kernel_size, strides, pads, precision: Any
) -> jax.Array:
  shape = (*kernel_size, x_BHWC.shape[3], gradient_BHWO.shape[3])
  return transposed(lambda kernel: convolution(x_BHWC, kernel, strides, pads, precision), shape, gradient_BHWO)


def transposed(linear: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], gradient: jax.Array) -> jax.Array:
  """∂⟨gradient, linear(x)⟩/∂x for an x of this shape and the gradient's dtype, which differs from device to device as
  the gradient does: else a shard_map would have the sum over devices."""
  x, _ = together(jnp.zeros(shape, gradient.dtype), gradient)
  return jax.linear_transpose(linear, x)(gradient)[0]
