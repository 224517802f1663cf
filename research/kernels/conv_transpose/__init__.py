"""The transposed convolution: forward and both gradients fast on a CPU, and differentiable any number of times.

It is the gradient of a convolution by its input (`kernels.conv.input_gradient`), and so it has that one's forms
and derivatives; what is here is its own meaning of channels, sizes and padding.
"""

from typing import Any

import jax

from research.kernels.choice import together
from research.kernels.conv import input_gradient

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_transpose(
  x_BHWC: jax.Array,
  kernel_HWCO: jax.Array,
  strides: tuple[int, int],
  padding: str | Pads = "SAME",
  *,
  precision: Any = None,
) -> jax.Array:
  """(B, H, W, C) with (h, w, C, O) → (B, H', W', O), in x's dtype.

  Pixel (i, j) adds x[i, j] · kernel[p, q] to output pixel (s·i + p − low, t·j + q − low): the kernel is not turned, as
  in PyTorch's ConvTranspose2d and Keras, unlike `lax.conv_transpose` without `transpose_kernel`.

  Args:
    x_BHWC: images or feature maps.
    kernel_HWCO: of x's dtype.
    strides: how many output pixels lie between two input pixels.
    padding: rows and columns cut off the result, ((low, high), (low, high)): H' = s·(H − 1) + h − low − high. "SAME"
      gives H' = s·H, cutting as evenly as can be (after a kernel smaller than the stride it adds zeros); "VALID" cuts
      nothing.

  Raises:
    ValueError: for padding that leaves nothing.
  """
  kernel_size = kernel_HWCO.shape[:2]
  if padding == "SAME":
    lows = [max(0, k - s) // 2 for k, s in zip(kernel_size, strides, strict=True)]
    padding = tuple((low, k - s - low) for low, k, s in zip(lows, kernel_size, strides, strict=True))
  elif padding == "VALID":
    padding = ((0, 0), (0, 0))
  size = tuple(
    s * (have - 1) + k - low - high
    for have, k, s, (low, high) in zip(x_BHWC.shape[1:3], kernel_size, strides, padding, strict=True)
  )
  if min(size) < 1:
    raise ValueError(f"conv_transpose: padding {padding} leaves nothing of {x_BHWC.shape[1:3]} with stride {strides}")
  x_BHWC, kernel_HWCO = together(x_BHWC, kernel_HWCO)
  return input_gradient(x_BHWC, kernel_HWCO.swapaxes(2, 3), size, tuple(strides), tuple(padding), precision)
