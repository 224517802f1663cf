"""The three operations by their definition, in float64 numpy."""

import numpy as np


def depthwise_conv(x_BHWC, kernel_HWC, strides, pads) -> np.ndarray:
  """y[b, i, j, c] = Σ over p, q of x[b, s·i + p − low, t·j + q − low, c] · kernel[p, q, c]."""
  x, kernel = np.asarray(x_BHWC, np.float64), np.asarray(kernel_HWC, np.float64)
  rows, columns = (
    (size + low + high - k) // s + 1
    for size, k, s, (low, high) in zip(x.shape[1:3], kernel.shape[:2], strides, pads, strict=True)
  )
  y = np.zeros((x.shape[0], rows, columns, x.shape[3]))
  for i, j, p, q, row, column in _reads(x.shape, kernel.shape, (rows, columns), strides, pads):
    y[:, i, j] += x[:, row, column] * kernel[p, q]
  return y


def input_gradient(gradient_BHWC, kernel_HWC, image_size, strides, pads) -> np.ndarray:
  """Each gradient goes back to the pixels that its window read."""
  g, kernel = np.asarray(gradient_BHWC, np.float64), np.asarray(kernel_HWC, np.float64)
  x = np.zeros((g.shape[0], *image_size, g.shape[3]))
  for i, j, p, q, row, column in _reads(x.shape, kernel.shape, g.shape[1:3], strides, pads):
    x[:, row, column] += kernel[p, q] * g[:, i, j]
  return x


def weight_gradient(x_BHWC, gradient_BHWC, kernel_size, strides, pads) -> np.ndarray:
  """Each kernel position sums what it multiplied, times the gradient there."""
  x, g = np.asarray(x_BHWC, np.float64), np.asarray(gradient_BHWC, np.float64)
  kernel = np.zeros((*kernel_size, x.shape[3]))
  for i, j, p, q, row, column in _reads(x.shape, kernel.shape, g.shape[1:3], strides, pads):
    kernel[p, q] += (x[:, row, column] * g[:, i, j]).sum(axis=0)
  return kernel


def _reads(image_shape, kernel_shape, output_size, strides, pads):
  """Every (output row and column, kernel row and column, image row and column) that lies in the image."""
  for i, j, p, q in np.ndindex(*output_size, *kernel_shape[:2]):
    row, column = strides[0] * i + p - pads[0][0], strides[1] * j + q - pads[1][0]
    if 0 <= row < image_shape[1] and 0 <= column < image_shape[2]:
      yield i, j, p, q, row, column
