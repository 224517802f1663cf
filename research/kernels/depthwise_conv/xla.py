"""The three operations as XLA has them: convolutions of as many groups as channels."""

import jax
from jax import lax

from research.kernels.conv.xla import transposed

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolution(x_BHWC: jax.Array, kernel_HWC: jax.Array, *, strides, pads, precision) -> jax.Array:
  return lax.conv_general_dilated(
    x_BHWC,
    kernel_HWC[:, :, None],
    strides,
    pads,
    dimension_numbers=DIMENSIONS,
    feature_group_count=kernel_HWC.shape[2],
    precision=precision,
  )


def input_gradient(gradient_BHWC: jax.Array, kernel_HWC: jax.Array, *, image_size, **options) -> jax.Array:
  shape = (gradient_BHWC.shape[0], *image_size, kernel_HWC.shape[2])
  return transposed(lambda x: convolution(x, kernel_HWC, **options), shape, gradient_BHWC)


def weight_gradient(x_BHWC: jax.Array, gradient_BHWC: jax.Array, *, kernel_size, **options) -> jax.Array:
  shape = (*kernel_size, x_BHWC.shape[3])
  return transposed(lambda kernel: convolution(x_BHWC, kernel, **options), shape, gradient_BHWC)
