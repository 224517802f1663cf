"""Evaluation as sums that add up over batches and hosts, and the named numbers that those sums give.

Counts are int32, exact to 2^31 (a float32 count stops growing at 2^24). Nothing here averages per batch: an average of
averages is wrong as soon as the last batch is short.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError

Sums = dict[str, jax.Array]


def classification_sums(logits: jax.Array, labels_B: jax.Array, losses_B: jax.Array, mask_B: jax.Array) -> Sums:
  """Sums for a classifier; `mask_B` is 1 for examples that count and 0 for padding.

  Args:
    logits: (B, C), or (B,) for one sigmoid output.
    labels_B: (B,) integer class indices.
    losses_B: (B,) float32.
    mask_B: (B,) float32.

  Returns: scalars "count", "correct" and, with 20 classes and more, "correct_top5" (int32), and "loss" (float32).
    An example with a NaN logit is never correct.
  """
  logits_BC = two_class_logits(logits)
  rank_B = label_rank(logits_BC, labels_B)
  real_B = mask_B > 0
  sums = {"count": _count(real_B), "loss": _masked_sum(losses_B, real_B), "correct": _count(real_B & (rank_B < 1))}
  if logits_BC.shape[1] >= 20:
    sums["correct_top5"] = _count(real_B & (rank_B < 5))
  return sums


def classification_summary(sums: Mapping[str, jax.Array | np.ndarray | float]) -> dict[str, float]:
  """"loss" (nats an example), "accuracy", and "accuracy_top5" where it was counted. No examples: UserError."""
  count = _example_count(sums)
  summary = {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}
  if "correct_top5" in sums:
    summary["accuracy_top5"] = float(sums["correct_top5"]) / count
  return summary


def class_sums(logits: jax.Array, labels_B: jax.Array, mask_B: jax.Array) -> Sums:
  """Sums of which `macro_f1` is made, with the arguments of `classification_sums`.

  Returns: "right_C", "predicted_C" and "labelled_C", int32 (C,): of each class the examples that are it and are said to
    be, that are said to be, and that are.
  """
  logits_BC = two_class_logits(logits)
  classes_C = jnp.arange(logits_BC.shape[1], dtype=jnp.int32)
  is_real_B1 = (mask_B > 0)[:, None]
  predicted_BC = (logits_BC.argmax(axis=-1).astype(jnp.int32)[:, None] == classes_C[None]) & is_real_B1
  labelled_BC = (labels_B.astype(jnp.int32)[:, None] == classes_C[None]) & is_real_B1
  named = {"right_C": predicted_BC & labelled_BC, "predicted_C": predicted_BC, "labelled_C": labelled_BC}
  return {name: value_BC.sum(axis=0, dtype=jnp.int32) for name, value_BC in named.items()}


def macro_f1(sums: Mapping[str, jax.Array | np.ndarray | float]) -> float:
  """The mean of the classes' F1 scores, 2·right / (predicted + labelled), over classes that occur or are predicted."""
  right_C, predicted_C, labelled_C = (np.asarray(sums[name]) for name in ("right_C", "predicted_C", "labelled_C"))
  either_C = predicted_C + labelled_C
  return float((2 * right_C[either_C > 0] / either_C[either_C > 0]).mean())


def regression_sums(
  predictions_B: jax.Array, targets_B: jax.Array, losses_B: jax.Array, mask_B: jax.Array, center: float = 0.0
) -> Sums:
  """Sums for a regressor.

  `center` is any fixed number near the targets' mean (the training mean serves). The spread that R² needs is summed
  about it: about 0 it would be a difference of two large numbers, and in float32 nothing would be left of
  it for targets such as years.

  Returns: scalars "count" (int32), and "loss", "squared_error", "absolute_error", "target" and "target_squared"
    (float32), the last two about `center`.
  """
  real_B = mask_B > 0
  error_B = predictions_B.astype(jnp.float32) - targets_B.astype(jnp.float32)
  centered_B = targets_B.astype(jnp.float32) - center
  return {
    "count": _count(real_B),
    "loss": _masked_sum(losses_B, real_B),
    "squared_error": _masked_sum(jnp.square(error_B), real_B),
    "absolute_error": _masked_sum(jnp.abs(error_B), real_B),
    "target": _masked_sum(centered_B, real_B),
    "target_squared": _masked_sum(jnp.square(centered_B), real_B),
  }


def regression_summary(sums: Mapping[str, jax.Array | np.ndarray | float]) -> dict[str, float]:
  """"loss", "mse", "mae" and "r2" = 1 − Σ error² / Σ (target − mean)². R² of targets that are all equal is NaN."""
  count = _example_count(sums)
  squared_error = float(sums["squared_error"])
  spread = float(sums["target_squared"]) - float(sums["target"]) ** 2 / count
  return {
    "loss": float(sums["loss"]) / count,
    "mse": squared_error / count,
    "mae": float(sums["absolute_error"]) / count,
    "r2": 1.0 - squared_error / spread if spread > 0 else math.nan,
  }


def add(sums: Sums, more: Sums) -> Sums:
  """The sums of both; what makes a whole evaluation out of batches."""
  return jax.tree.map(jnp.add, sums, more)


def classification_examples(logits: jax.Array, labels_B: jax.Array, losses_B: jax.Array) -> dict[str, jax.Array]:
  """For the report, per example: "label" and "prediction" int32, "loss" float32, "probability" of the prediction."""
  logits_BC = two_class_logits(logits)
  return {
    "label": labels_B.astype(jnp.int32),
    "prediction": logits_BC.argmax(axis=-1).astype(jnp.int32),
    "loss": losses_B.astype(jnp.float32),
    "probability": jax.nn.softmax(logits_BC, axis=-1).max(axis=-1),
  }


def two_class_logits(logits: jax.Array) -> jax.Array:
  """A sigmoid output x as the softmax logits (0, x), which give the same probability. (B,) → (B, 2); (B, C) stays."""
  logits = logits.astype(jnp.float32)
  return jnp.stack([jnp.zeros_like(logits), logits], axis=-1) if logits.ndim == 1 else logits


def label_rank(logits_BC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """How many classes come before the label's when sorted by logit, the lower index first on ties. (B,) int32.

  C where any logit is NaN, so that a broken model is not counted as right.
  """
  class_BC = jax.lax.broadcasted_iota(labels_B.dtype, logits_BC.shape, 1)
  is_label_BC = class_BC == labels_B[:, None]
  label_logit_B1 = jnp.where(is_label_BC, logits_BC, -jnp.inf).max(axis=-1, keepdims=True)
  before_BC = (logits_BC > label_logit_B1) | ((logits_BC == label_logit_B1) & (class_BC < labels_B[:, None]))
  broken_B = jnp.isnan(logits_BC).any(axis=-1)
  return jnp.where(broken_B, logits_BC.shape[1], before_BC.sum(axis=-1, dtype=jnp.int32))


def _count(condition_B: jax.Array) -> jax.Array:
  return condition_B.sum(dtype=jnp.int32)


def _masked_sum(values_B: jax.Array, real_B: jax.Array) -> jax.Array:
  """Padding may hold anything, NaN too, so it is replaced and not multiplied by zero."""
  return jnp.where(real_B, values_B.astype(jnp.float32), 0.0).sum()


def _example_count(sums: Mapping[str, jax.Array | np.ndarray | float]) -> int:
  count = int(sums["count"])
  if count == 0:
    raise UserError("evaluation: there are no examples to evaluate on")
  return count
