"""The three operations by their definition, in float64 numpy."""

import numpy as np


def convolution(x_BHWC, kernel_HWCO, strides, pads) -> np.ndarray:
  """y[b, i, j] = Σ over p, q of x[b, s·i + p − low, t·j + q − low] · kernel[p, q]."""
  x, kernel = np.asarray(x_BHWC, np.float64), np.asarray(kernel_HWCO, np.float64)
  rows, columns = _output_size(x.shape[1:3], kernel.shape[:2], strides, pads)
  y = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
  for b, i, j, p, q, row, column in _reads(x.shape, kernel.shape, (rows, columns), strides, pads):
    y[b, i, j] += x[b, row, column] @ kernel[p, q]
  return y


def input_gradient(gradient_BHWO, kernel_HWCO, image_size, strides, pads) -> np.ndarray:
  """Each gradient goes back to the pixels that its window read. With the kernel's channels exchanged it is the
  transposed convolution."""
  g, kernel = np.asarray(gradient_BHWO, np.float64), np.asarray(kernel_HWCO, np.float64)
  x = np.zeros((g.shape[0], *image_size, kernel.shape[2]))
  for b, i, j, p, q, row, column in _reads(x.shape, kernel.shape, g.shape[1:3], strides, pads):
    x[b, row, column] += kernel[p, q] @ g[b, i, j]
  return x


def weight_gradient(x_BHWC, gradient_BHWO, kernel_size, strides, pads) -> np.ndarray:
  """Each kernel position sums what it multiplied, times the gradient there."""
  x, g = np.asarray(x_BHWC, np.float64), np.asarray(gradient_BHWO, np.float64)
  kernel = np.zeros((*kernel_size, x.shape[3], g.shape[3]))
  for b, i, j, p, q, row, column in _reads(x.shape, kernel.shape, g.shape[1:3], strides, pads):
    kernel[p, q] += np.outer(x[b, row, column], g[b, i, j])
  return kernel


def _output_size(image_size, kernel_size, strides, pads) -> tuple[int, ...]:
  return tuple(
    (size + low + high - k) // s + 1
    for size, k, s, (low, high) in zip(image_size, kernel_size, strides, pads, strict=True)
  )


def _reads(image_shape, kernel_shape, output_size, strides, pads):
  """Every (example, output row and column, kernel row and column, image row and column) that lies in the image."""
  for b, i, j, p, q in np.ndindex(image_shape[0], *output_size, *kernel_shape[:2]):
    row, column = strides[0] * i + p - pads[0][0], strides[1] * j + q - pads[1][0]
    if 0 <= row < image_shape[1] and 0 <= column < image_shape[2]:
      yield b, i, j, p, q, row, column
