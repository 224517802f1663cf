"""The definition and its gradients, in float64: one row after the other."""

import numpy as np


def attention(q, k, v, *, causal, segment_ids, window, softcap, scale, to_output, to_sum):
  """→ (output_BLHK, log_sum_exp_BLH, gradients of ⟨to_output, output⟩ + ⟨to_sum, log_sum_exp⟩ to q, k and v)."""
  batch, length, heads, width = q.shape
  keys, groups = k.shape[1:3]
  scale = width**-0.5 if scale is None else scale
  segment_ids = None if segment_ids is None else [np.asarray(each) for each in segment_ids]
  output, sums = np.zeros(q.shape), np.full((batch, length, heads), -np.inf)
  to_q, to_k, to_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
  for b, row, head in np.ndindex(batch, length, heads):
    group, place = head // (heads // groups), row + keys - length
    seen = np.ones(keys, bool)
    for key in range(keys):
      if causal and key > place:
        seen[key] = False
      if window and (key <= place - window or (not causal and key >= place + window)):
        seen[key] = False
      if segment_ids is not None:
        seen[key] &= segment_ids[0][b, row] == segment_ids[1][b, key] >= 0
    if not seen.any():
      continue
    raw = scale * k[b, seen, group] @ q[b, row, head]
    scores = softcap * np.tanh(raw / softcap) if softcap else raw
    sums[b, row, head] = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
    weights = np.exp(scores - sums[b, row, head])
    output[b, row, head] = weights @ v[b, seen, group]
    g = to_output[b, row, head]
    to_weights = v[b, seen, group] @ g
    to_scores = weights * (to_weights - weights @ to_weights + to_sum[b, row, head])
    if softcap:
      to_scores = to_scores * (1 - np.tanh(raw / softcap) ** 2)
    to_q[b, row, head] = scale * to_scores @ k[b, seen, group]
    to_k[b, seen, group] += scale * np.outer(to_scores, q[b, row, head])
    to_v[b, seen, group] += np.outer(weights, g)
  return output, sums, (to_q, to_k, to_v)
