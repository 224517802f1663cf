"""Losses of single examples, float32 and stable for any finite logits. Averaging is not done here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.kernels.linear_cross_entropy import linear_cross_entropy
from research.parallel.activations import Cut, Kept, spread


def mean_squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """(prediction − target)², averaged over every axis but the first. (B, …) and the same shape → (B,) float32."""
  if predictions.shape != targets.shape:
    raise ValueError(f"mean_squared_error: predictions {predictions.shape} against targets {targets.shape}")
  squares = jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
  return squares.reshape(squares.shape[0], -1).mean(axis=1)


def mean_absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """|prediction − target|, averaged over every axis but the first. (B, …) and the same shape → (B,) float32."""
  if predictions.shape != targets.shape:
    raise ValueError(f"mean_absolute_error: predictions {predictions.shape} against targets {targets.shape}")
  errors = jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
  return errors.reshape(errors.shape[0], -1).mean(axis=1)


def sigmoid_cross_entropy(logits_B: jax.Array, labels_B: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """−z·log σ(x) − (1−z)·log(1−σ(x)), one binary decision an example.

  Args:
    logits_B: (B,) float.
    labels_B: (B,) of any dtype, in [0, 1]; values between are soft labels.
    label_smoothing: a in z ← (1−a)·z + a/2.

  Returns: (B,) float32.
  """
  if logits_B.shape != labels_B.shape:
    raise ValueError(f"sigmoid_cross_entropy: logits {logits_B.shape} against labels {labels_B.shape}")
  x = logits_B.astype(jnp.float32)
  z = (1.0 - label_smoothing) * labels_B.astype(jnp.float32) + 0.5 * label_smoothing
  # Two terms of one sign, each stable: nothing large is subtracted, so even a tiny loss has all its digits. (The common
  # max(x, 0) − x·z + log1p(exp(−|x|)) is as stable, but its gradient at 0 rests on that of |x|, which JAX takes as 1.)
  return z * jax.nn.softplus(-x) + (1.0 - z) * jax.nn.softplus(x)


def softmax_cross_entropy(logits_BC: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """−Σ_c q_c·log softmax(x)_c, with q the label distribution.

  Args:
    logits_BC: (B, C) float.
    labels: class indices (B,) of an integer dtype, in [0, C) (the data layer refuses others), or
      distributions (B, C) of a float dtype, as mixup makes.
    label_smoothing: a in q ← (1−a)·q + a/C (Szegedy et al. 2016, section 7).

  Returns: (B,) float32.
  """
  classes = logits_BC.shape[-1]
  integers = jnp.issubdtype(labels.dtype, jnp.integer)
  wanted = logits_BC.shape[:1] if integers else logits_BC.shape
  if logits_BC.ndim != 2 or labels.shape != wanted:
    raise ValueError(f"softmax_cross_entropy: logits {logits_BC.shape} against labels {labels.shape} {labels.dtype}")
  x_BC = logits_BC.astype(jnp.float32)
  # Shifting by the maximum changes nothing in the mathematics, so no gradient goes through it.
  x_BC = x_BC - jax.lax.stop_gradient(x_BC.max(axis=-1, keepdims=True))
  log_normalizer_B = jnp.log(jnp.exp(x_BC).sum(axis=-1))
  if integers:
    # Comparing with an iota: take_along_axis' gradient would be a scatter.
    is_label_BC = jax.lax.broadcasted_iota(labels.dtype, x_BC.shape, 1) == labels[:, None]
    picked_B = jnp.where(is_label_BC, x_BC, 0.0).sum(axis=-1)
  else:
    picked_B = (labels.astype(jnp.float32) * x_BC).sum(axis=-1)
  if label_smoothing:
    picked_B = (1.0 - label_smoothing) * picked_B + label_smoothing / classes * x_BC.sum(axis=-1)
  return log_normalizer_B - picked_B


class TokenScores(NamedTuple):
  """Of each token: its loss, float32 and 0 where there is no target, and the likeliest one, int32."""

  loss_BL: jax.Array
  guess_BL: jax.Array


def token_scores(
  unscored: Any, targets_BL: jax.Array, weight: jax.Array | float = 1.0, *, z_loss: float = 0.0
) -> tuple[jax.Array, TokenScores]:
  """Cross-entropies of tokens without holding their logits (`kernels.linear_cross_entropy`).

  Args:
    unscored: a `language_model.Unscored`.
    targets_BL: int32; negative where there is none.
    weight: of each loss in the total: 1 / count for their mean.
    z_loss: weight of log²Z beside each loss, Z the softmax's normaliser.

  Returns: (the weighted total, float32 (), which alone has a gradient; the scores).
  """
  x_BLD, kernel_DV, bias_V, softcap = unscored
  weights_BL = jnp.full(targets_BL.shape, weight, jnp.float32)

  def score(cut: Cut, x_BLD, kernel_DV, bias_V, targets_BL, weights_BL):
    found = linear_cross_entropy(
      x_BLD.reshape(-1, x_BLD.shape[-1]),
      kernel_DV,
      jnp.maximum(targets_BL.reshape(-1), -1),
      weights_BL.reshape(-1),
      bias_V,
      z_loss=z_loss,
      softcap=softcap,
    )
    over = cut.get("batch", ()) + cut.get("stream_length", ())
    total = jax.lax.psum(found.total, over) if over else found.total
    return total, *(each.reshape(targets_BL.shape) for each in (found.loss_N, found.guess_N))

  tokens, head = ("batch", "stream_length"), Kept(("embed", "vocab"))
  ins = ((*tokens, None), head, None if bias_V is None else (None,), tokens, tokens)
  total, *scores = spread(score, ins, ((), tokens, tokens))(x_BLD, kernel_DV, bias_V, targets_BL, weights_BL)
  return total, TokenScores(*scores)
