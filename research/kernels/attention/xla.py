"""All scores at once. Without a soft cap the softmax's weights are kept for the backward pass, as autodiff would,
where no other form may have made the forward pass."""

import jax
import jax.numpy as jnp

from research.kernels.attention.masks import How, capped, seen


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  return *forward_and_weights(q_BLHK, k_BMGK, v_BMGK, *segments, how=how)[:2], None


def forward_and_weights(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, weights_BGRLM or None)."""
  weights_BGRLM, log_sum_exp_BLH = _weights(q_BLHK, k_BMGK, segments, how)
  weights_BGRLM = weights_BGRLM.astype(v_BMGK.dtype)
  output_BLHK = jnp.einsum("bgrlm,bmgk->blgrk", weights_BGRLM, v_BMGK).reshape(q_BLHK.shape)
  return output_BLHK, log_sum_exp_BLH, None if how.softcap else weights_BGRLM


def backward(q_BLHK, k_BMGK, v_BMGK, *segments, how: How, made, gradients):
  """→ gradients to q, k and v, of `gradients` to the output and the log-sum-exp."""
  weights_BGRLM = made[2]
  to_output_BLHK, to_sum_BLH = gradients
  dtype, groups = q_BLHK.dtype, k_BMGK.shape[2]
  scores_BGRLM = None
  if weights_BGRLM is None:
    weights_BGRLM, _ = _weights(q_BLHK, k_BMGK, segments, how)
    scores_BGRLM = capped(_scores(q_BLHK, k_BMGK, how), how) if how.softcap else None
  by_group = lambda x: x.reshape(*x.shape[:2], groups, -1, *x.shape[3:])  # noqa: E731
  to_output_BLGRK = by_group(to_output_BLHK)
  to_value = jnp.einsum("bgrlm,blgrk->bmgk", weights_BGRLM.astype(dtype), to_output_BLGRK)
  to_weights = jnp.einsum("blgrk,bmgk->bgrlm", to_output_BLGRK, v_BMGK, preferred_element_type=jnp.float32)
  wide_BGRLM = weights_BGRLM.astype(jnp.float32)
  inner_BGRL1 = (to_weights * wide_BGRLM).sum(axis=-1, keepdims=True)
  to_sum_BGRL1 = by_group(to_sum_BLH).transpose(0, 2, 3, 1)[..., None]
  to_scores = wide_BGRLM * (to_weights - inner_BGRL1 + to_sum_BGRL1)
  if scores_BGRLM is not None:
    to_scores = to_scores * (1.0 - jnp.square(scores_BGRLM / how.softcap))
  to_scores = to_scores.astype(dtype)
  to_query = jnp.einsum("bgrlm,bmgk->blgrk", to_scores, k_BMGK).reshape(q_BLHK.shape) * how.scale
  to_key = jnp.einsum("bgrlm,blgrk->bmgk", to_scores, by_group(q_BLHK * how.scale))
  return to_query.astype(dtype), to_key.astype(dtype), to_value.astype(dtype)


def _scores(q_BLHK: jax.Array, k_BMGK: jax.Array, how: How) -> jax.Array:
  batch, length, _, width = q_BLHK.shape
  q_BLGRK = (q_BLHK * how.scale).reshape(batch, length, k_BMGK.shape[2], -1, width)
  return jnp.einsum("blgrk,bmgk->bgrlm", q_BLGRK, k_BMGK, preferred_element_type=jnp.float32)


def _weights(q_BLHK, k_BMGK, segments, how: How) -> tuple[jax.Array, jax.Array]:
  """→ (the softmax's weights_BGRLM float32, zeros in a row that sees nothing, log_sum_exp_BLH)."""
  scores_BGRLM = capped(_scores(q_BLHK, k_BMGK, how), how)
  batch, length, heads, _ = q_BLHK.shape
  keys = k_BMGK.shape[1]
  places = jnp.arange(keys, dtype=jnp.int32)
  mask_BLM = seen(jnp.arange(length, dtype=jnp.int32) + (keys - length), places, how, segments)
  if mask_BLM is not None:
    scores_BGRLM = jnp.where(mask_BLM[:, None, None], scores_BGRLM, -jnp.inf)
  greatest = jax.lax.stop_gradient(scores_BGRLM.max(axis=-1, keepdims=True))
  greatest = jnp.where(jnp.isfinite(greatest), greatest, 0.0)
  raised = jnp.exp(scores_BGRLM - greatest)
  total = raised.sum(axis=-1, keepdims=True)
  weights_BGRLM = raised / jnp.where(total > 0.0, total, 1.0)
  log_sum_exp_BGRL = (jnp.log(total) + greatest)[..., 0]
  return weights_BGRLM, log_sum_exp_BGRL.transpose(0, 3, 1, 2).reshape(batch, length, heads)
