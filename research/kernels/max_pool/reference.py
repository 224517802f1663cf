"""The definition, in float64 numpy."""

import numpy as np


def max_pool(x_BHWC, window, strides, pads) -> np.ndarray:
  """y[b, i, j, c] = the greatest of x's pixels in the window at (s·i − low, t·j − low)."""
  x = np.asarray(x_BHWC, np.float64)
  y = np.zeros((x.shape[0], *_outputs(x.shape[1:3], window, strides, pads), x.shape[3]))
  for b, i, j, c in np.ndindex(y.shape):
    y[b, i, j, c] = max(x[b, row, column, c] for row, column in _pixels(x.shape, i, j, window, strides, pads))
  return y


def gradient(gradient_BHWC, x_BHWC, window, strides, pads) -> np.ndarray:
  """Each gradient goes to the first pixel of its window, in order of rows, that no other exceeds."""
  g, x = np.asarray(gradient_BHWC, np.float64), np.asarray(x_BHWC, np.float64)
  to_x = np.zeros(x.shape)
  for b, i, j, c in np.ndindex(g.shape):
    pixels = list(_pixels(x.shape, i, j, window, strides, pads))
    values = [x[b, row, column, c] for row, column in pixels]
    row, column = pixels[values.index(max(values))]
    to_x[b, row, column, c] += g[b, i, j, c]
  return to_x


def _outputs(image_size, window, strides, pads) -> tuple[int, ...]:
  return tuple(
    (size + low + high - k) // s + 1 for size, k, s, (low, high) in zip(image_size, window, strides, pads, strict=True)
  )


def _pixels(image_shape, i, j, window, strides, pads):
  for p, q in np.ndindex(*window):
    row, column = strides[0] * i + p - pads[0][0], strides[1] * j + q - pads[1][0]
    if 0 <= row < image_shape[1] and 0 <= column < image_shape[2]:
      yield row, column
