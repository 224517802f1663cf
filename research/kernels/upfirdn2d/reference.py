"""The definition, in float64 numpy: the zeros are laid, the filter is turned, and pixels are thrown away."""

import numpy as np


def upfirdn2d(x_BHWC, filter, up, down, pads) -> np.ndarray:
  """As its three steps say."""
  x, numbers = np.asarray(x_BHWC, np.float64), np.asarray(filter, np.float64)
  if numbers.ndim == 1:
    numbers = np.outer(numbers, numbers)
  batch, height, width, channels = x.shape
  wide = np.zeros((batch, height * up[0], width * up[1], channels))
  wide[:, :: up[0], :: up[1]] = x
  wide = np.pad(wide, ((0, 0), *((max(0, low), max(0, high)) for low, high in pads), (0, 0)))
  (top, bottom), (left, right) = pads
  wide = wide[:, max(0, -top) : wide.shape[1] - max(0, -bottom), max(0, -left) : wide.shape[2] - max(0, -right)]
  rows, columns = (wide.shape[axis + 1] - numbers.shape[axis] + 1 for axis in (0, 1))
  filtered = np.zeros((batch, rows, columns, channels))
  for p, q in np.ndindex(numbers.shape):
    filtered += numbers[::-1, ::-1][p, q] * wide[:, p : p + rows, q : q + columns]
  return filtered[:, :: down[0], :: down[1]]


def gradient(gradient_BHWC, image_size, filter, up, down, pads) -> np.ndarray:
  """Each pixel's is what the image of that pixel alone becomes, times the gradient there."""
  g = np.asarray(gradient_BHWC, np.float64)
  to_x = np.zeros((g.shape[0], *image_size, g.shape[3]))
  for i, j in np.ndindex(*image_size):
    alone = np.zeros((1, *image_size, 1))
    alone[0, i, j] = 1.0
    to_x[:, i, j] = (g * upfirdn2d(alone, filter, up, down, pads)).sum(axis=(1, 2))
  return to_x
