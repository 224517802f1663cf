"""The definition and its derivatives, in float64: one row after the other."""

import numpy as np


def norm(x, scale_D, bias_D, *, kind: str, epsilon: float, residual=None, to_y=None, to_total=None):
  """→ (y, x + residual, gradients of ⟨to_y, y⟩ + ⟨to_total, x + residual⟩ to x, scale and bias, or None).

  layer: (row − mean) / √(variance + ε) (Ba et al. 2016, equation 4); rms: row / √(mean of squares + ε) (Zhang and
  Sennrich 2019, equation 4); times the scale, plus the bias. The residual's gradient is x's.
  """
  x, scale, bias = (np.asarray(value, np.float64) for value in (x, scale_D, bias_D))
  total = x if residual is None else x + np.asarray(residual, np.float64)
  y, to_x = np.zeros(x.shape), np.zeros(x.shape)
  to_scale, to_bias = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
  for place in np.ndindex(x.shape[:-1]):
    row = total[place] - total[place].mean() if kind == "layer" else total[place]
    deviation = np.sqrt((row**2).mean() + epsilon)
    normal = row / deviation
    y[place] = normal * scale + bias
    if to_y is None:
      continue
    to_normal = to_y[place] * scale
    to_row = to_normal - normal * (to_normal * normal).mean()
    if kind == "layer":
      to_row -= to_row.mean()
    to_x[place] = to_row / deviation + (0.0 if to_total is None else to_total[place])
    to_scale += to_y[place] * normal
    to_bias += to_y[place]
  return y, total, None if to_y is None else (to_x, to_scale, to_bias)
