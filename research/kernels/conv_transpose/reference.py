"""The transposed convolution by its definition, in float64 numpy."""

import numpy as np


def conv_transpose(x_BHWC, kernel_HWCO, strides, pads) -> np.ndarray:
  """Every input pixel lays its kernel on the output, `strides` apart; then the edges are cut off."""
  x, kernel = np.asarray(x_BHWC, np.float64), np.asarray(kernel_HWCO, np.float64)
  (batch, height, width, _), (rows, columns, _, outputs) = x.shape, kernel.shape
  whole = np.zeros((batch, strides[0] * (height - 1) + rows, strides[1] * (width - 1) + columns, outputs))
  for i, j in np.ndindex(height, width):
    top, left = strides[0] * i, strides[1] * j
    whole[:, top : top + rows, left : left + columns] += np.einsum("bc,hwco->bhwo", x[:, i, j], kernel)
  (top, bottom), (left, right) = pads
  edges = [(0, 0), (max(0, -top), max(0, -bottom)), (max(0, -left), max(0, -right)), (0, 0)]
  whole = np.pad(whole, edges)
  return whole[:, max(0, top) : whole.shape[1] - max(0, bottom), max(0, left) : whole.shape[2] - max(0, right)]
