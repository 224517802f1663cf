"""Losses of single examples, float32 and stable for any finite logits. Averaging is not done here."""

import jax
import jax.numpy as jnp


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


def token_cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """−log softmax(logits)[target] of each position, and log Z, the logarithm of the softmax's normaliser.

  Args:
    logits_BLV: (B, L, V) float.
    targets_BL: (B, L) int32; what is outside [0, V) has a loss of log Z, which nothing should count.

  Returns: losses_BL and log_normalizer_BL, float32.
  """
  x_BLV = logits_BLV.astype(jnp.float32)
  shift_BL1 = jax.lax.stop_gradient(x_BLV.max(axis=-1, keepdims=True))
  log_normalizer_BL = jnp.log(jnp.exp(x_BLV - shift_BL1).sum(axis=-1)) + shift_BL1[..., 0]
  is_target_BLV = jax.lax.broadcasted_iota(targets_BL.dtype, x_BLV.shape, 2) == targets_BL[..., None]
  return log_normalizer_BL - jnp.where(is_target_BLV, x_BLV, 0.0).sum(axis=-1), log_normalizer_BL
