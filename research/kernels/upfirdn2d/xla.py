"""What is left to the compiler: a convolution of as many groups as channels, of a dilated image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.kernels.upfirdn2d.resampling import Resampling


def run(x_BHWC: jax.Array, *, how: Resampling) -> jax.Array:
  """(B, H, W, C) → (B, H', W', C)."""
  channels = x_BHWC.shape[3]
  turned = how.taps[::-1, ::-1, None, None]
  kernel_HW1C = jnp.asarray(np.broadcast_to(turned, (*turned.shape[:3], channels)), x_BHWC.dtype)
  # A dilated image ends with a pixel, and upfirdn2d's with the zeros that follow it.
  pads = [(low, high + up - 1) for (low, high), up in zip(how.pads, how.up, strict=True)]
  return lax.conv_general_dilated(
    x_BHWC,
    kernel_HW1C,
    how.down,
    pads,
    lhs_dilation=how.up,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
  )
