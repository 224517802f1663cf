"""The definition, in float64: one token after the other."""

import numpy as np


def linear_cross_entropy(x_ND, kernel_DV, labels_N, weights_N, bias_V, *, ignore, z_loss, softcap, smoothing):
  """→ (total, loss_N, log_normalizer_N, guess_N, gradients of the total to x, kernel and bias)."""
  x_ND, kernel_DV, weights_N, bias_V = (np.asarray(a, np.float64) for a in (x_ND, kernel_DV, weights_N, bias_V))
  count, vocabulary = len(x_ND), kernel_DV.shape[1]
  total, loss_N, log_normalizer_N, guess_N = 0.0, np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
  to_x_ND, to_kernel_DV, to_bias_V = np.zeros_like(x_ND), np.zeros_like(kernel_DV), np.zeros_like(bias_V)
  for n in range(count):
    raw_V = x_ND[n] @ kernel_DV + bias_V
    logits_V = softcap * np.tanh(raw_V / softcap) if softcap else raw_V
    log_normalizer_N[n] = np.log(np.exp(logits_V - logits_V.max()).sum()) + logits_V.max()
    guess_N[n] = logits_V.argmax()
    if labels_N[n] == ignore:
      continue
    wanted_V = np.full(vocabulary, smoothing / vocabulary)
    wanted_V[labels_N[n]] += 1.0 - smoothing
    loss_N[n] = log_normalizer_N[n] - wanted_V @ logits_V
    total += weights_N[n] * (loss_N[n] + z_loss * log_normalizer_N[n] ** 2)
    probability_V = np.exp(logits_V - log_normalizer_N[n])
    slope_V = weights_N[n] * (probability_V - wanted_V + 2 * z_loss * log_normalizer_N[n] * probability_V)
    if softcap:
      slope_V = slope_V * (1 - np.tanh(raw_V / softcap) ** 2)
    to_x_ND[n] = kernel_DV @ slope_V
    to_kernel_DV += np.outer(x_ND[n], slope_V)
    to_bias_V += slope_V
  return total, loss_N, log_normalizer_N, guess_N, (to_x_ND, to_kernel_DV, to_bias_V)
