"""The definition and its gradient, in float64 numpy."""

import numpy as np


def _sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


ACTIVATIONS = {  # name: (value, slope) of the input
  "linear": (lambda x: x, np.ones_like),
  "relu": (lambda x: np.maximum(x, 0.0), lambda x: (x > 0.0) * 1.0),
  "leaky_relu": (lambda x: np.where(x > 0.0, x, 0.2 * x), lambda x: np.where(x > 0.0, 1.0, 0.2)),
  "tanh": (np.tanh, lambda x: 1.0 / np.cosh(x) ** 2),
  "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
  "swish": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) + x * _sigmoid(x) * _sigmoid(-x)),
}


def bias_act(x, bias_C, activation: str, gain: float, clamp: float | None) -> np.ndarray:
  """Added, activated, multiplied, cut off."""
  y = gain * ACTIVATIONS[activation][0](np.asarray(x, np.float64) + np.asarray(bias_C, np.float64))
  return y if clamp is None else np.clip(y, -clamp, clamp)


def gradient(gradient, x, bias_C, activation: str, gain: float, clamp: float | None) -> tuple[np.ndarray, np.ndarray]:
  """By x and by the bias."""
  biased = np.asarray(x, np.float64) + np.asarray(bias_C, np.float64)
  value, slope = ACTIVATIONS[activation]
  to_x = np.asarray(gradient, np.float64) * gain * slope(biased)
  if clamp is not None:
    to_x = np.where(np.abs(gain * value(biased)) < clamp, to_x, 0.0)
  return to_x, to_x.reshape(-1, to_x.shape[-1]).sum(axis=0)
