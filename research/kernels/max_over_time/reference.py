"""The operations by their definition, in float64 numpy."""

import numpy as np


def greatest(x_BLD, kernel_KDF, real_BL) -> np.ndarray:
  """The greatest of the values at real places; (B, F)."""
  x, kernel = np.asarray(x_BLD, np.float64), np.asarray(kernel_KDF, np.float64)
  y = np.full((len(x), kernel.shape[2]), -np.inf)
  for b, place in zip(*np.nonzero(real_BL), strict=True):
    place_1F = np.full((1, kernel.shape[2]), place)
    y[b] = np.maximum(y[b], value(x[b : b + 1], kernel, place_1F)[0])
  return y


def value(x_BLD, kernel_KDF, place_BF) -> np.ndarray:
  """y[b, f] = Σ over k of x[b, place + k − (K−1)//2] · kernel[k, :, f]."""
  x, kernel = np.asarray(x_BLD, np.float64), np.asarray(kernel_KDF, np.float64)
  y = np.zeros(np.shape(place_BF))
  for b, f, k, row in _reads(place_BF, kernel.shape[0], x.shape[1]):
    y[b, f] += x[b, row] @ kernel[k, :, f]
  return y


def input_gradient(g_BF, kernel_KDF, place_BF, length: int) -> np.ndarray:
  """Each gradient goes back to the words that its window read."""
  g, kernel = np.asarray(g_BF, np.float64), np.asarray(kernel_KDF, np.float64)
  x = np.zeros((len(g), length, kernel.shape[1]))
  for b, f, k, row in _reads(place_BF, kernel.shape[0], length):
    x[b, row] += g[b, f] * kernel[k, :, f]
  return x


def weight_gradient(x_BLD, g_BF, place_BF, window: int) -> np.ndarray:
  """Each word of a window adds itself, times the gradient."""
  x, g = np.asarray(x_BLD, np.float64), np.asarray(g_BF, np.float64)
  kernel = np.zeros((window, x.shape[2], g.shape[1]))
  for b, f, k, row in _reads(place_BF, window, x.shape[1]):
    kernel[k, :, f] += g[b, f] * x[b, row]
  return kernel


def _reads(place_BF, window: int, length: int):
  """Every (text, filter, word of the window, row of the text) that lies in the text."""
  for (b, f), place in np.ndenumerate(place_BF):
    for k in range(window):
      if 0 <= place + k - (window - 1) // 2 < length:
        yield b, f, k, place + k - (window - 1) // 2
