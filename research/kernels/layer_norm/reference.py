"""The definition, in float64 numpy."""

import numpy as np


def layer_norm(x, scale_D, bias_D, epsilon: float) -> np.ndarray:
  """Each row less its mean, over the root of its variance and epsilon, times the scale, plus the bias."""
  x, scale, bias = (np.asarray(value, np.float64) for value in (x, scale_D, bias_D))
  y = np.zeros(x.shape)
  for place in np.ndindex(x.shape[:-1]):
    row = x[place]
    y[place] = (row - row.mean()) / np.sqrt(row.var() + epsilon) * scale + bias
  return y
