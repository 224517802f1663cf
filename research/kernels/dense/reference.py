"""The three operations by their definition, in float64 numpy."""

import numpy as np


def product(x, kernel_DF) -> np.ndarray:
  """y[…, f] = Σ over d of x[…, d] · kernel[d, f]."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel_DF, np.float64)
  y = np.zeros((*x.shape[:-1], kernel.shape[1]))
  for place in np.ndindex(x.shape[:-1]):
    for d, row_F in enumerate(kernel):
      y[place] += x[place][d] * row_F
  return y


def input_gradient(gradient, kernel_DF) -> np.ndarray:
  """x[…, d] = Σ over f of gradient[…, f] · kernel[d, f]."""
  return product(gradient, np.asarray(kernel_DF).T)


def weight_gradient(x, gradient) -> np.ndarray:
  """Each place adds its outer product."""
  x, gradient = np.asarray(x, np.float64), np.asarray(gradient, np.float64)
  kernel = np.zeros((x.shape[-1], gradient.shape[-1]))
  for place in np.ndindex(x.shape[:-1]):
    kernel += np.outer(x[place], gradient[place])
  return kernel
