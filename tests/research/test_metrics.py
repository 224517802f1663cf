"""Metrics against scikit-learn in float64, however the examples are cut into batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from research import metrics
from research.errors import UserError

CLASSES = 24
# Jitted: one compilation where eager calls would make one for each operation.
add = jax.jit(metrics.add)
classification_sums = jax.jit(metrics.classification_sums)
regression_sums = jax.jit(metrics.regression_sums)
classification_examples = jax.jit(metrics.classification_examples)


def classifier_data(size, seed=0):
  random = np.random.default_rng(seed)
  logits_BC = random.normal(size=(size, CLASSES)).astype(np.float32)
  return logits_BC, random.integers(0, CLASSES, size).astype(np.int32), random.exponential(size=size).astype(np.float32)


def in_batches(function, arrays, batch):
  """Sums over padded, masked batches, the padding being NaN where it can be."""
  total = None
  for start in range(0, len(arrays[0]), batch):
    pieces = [array[start : start + batch] for array in arrays]
    missing = batch - len(pieces[0])
    mask = np.concatenate([np.ones(len(pieces[0])), np.zeros(missing)]).astype(np.float32)
    bad = [np.nan if piece.dtype.kind == "f" else 0 for piece in pieces]
    padded = [
      np.concatenate([piece, np.full((missing, *piece.shape[1:]), value, piece.dtype)])
      for piece, value in zip(pieces, bad, strict=True)
    ]
    sums = function(*map(jnp.asarray, padded), jnp.asarray(mask))
    total = sums if total is None else add(total, sums)
  return total


@pytest.mark.parametrize("batch", [103, 32, 10])
def test_accuracies_are_scikit_learns_whatever_the_batch(batch):
  arrays = logits_BC, labels_B, losses_B = classifier_data(103)
  summary = metrics.classification_summary(in_batches(classification_sums, arrays, batch))
  assert summary["accuracy"] == sklearn.metrics.accuracy_score(labels_B, logits_BC.argmax(1))
  top5 = sklearn.metrics.top_k_accuracy_score(labels_B, logits_BC, k=5, labels=range(CLASSES))
  assert summary["accuracy_top5"] == pytest.approx(top5, rel=1e-12)
  assert summary["loss"] == pytest.approx(losses_B.astype(np.float64).mean(), rel=1e-6)


def test_counts_do_not_stop_at_two_to_the_24():
  start = {"count": jnp.asarray(2**24, jnp.int32), "correct": jnp.asarray(2**24, jnp.int32), "loss": jnp.zeros(())}
  sums = classification_sums(jnp.asarray([[1.0, 0.0]]), jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.ones(1))
  total = metrics.add(start, sums)
  assert int(total["count"]) == int(total["correct"]) == 2**24 + 1


def test_nan_logits_are_never_correct():
  logits_BC = jnp.asarray([[np.nan] * 20, [9, np.nan] + [0] * 18, [9.0] + [0] * 19], jnp.float32)
  sums = classification_sums(logits_BC, jnp.zeros(3, jnp.int32), jnp.zeros(3), jnp.ones(3))
  assert int(sums["correct"]) == int(sums["correct_top5"]) == 1


def test_a_tie_is_decided_as_argmax_does():
  logits_BC = jnp.zeros((20, 20))
  sums = classification_sums(logits_BC, jnp.arange(20), jnp.zeros(20), jnp.ones(20))
  assert int(sums["correct"]) == 1  # class 0 alone, or a constant model would be right about everything
  assert int(sums["correct_top5"]) == 5


def test_one_sigmoid_output_is_a_two_class_problem():
  logits_B, labels_B = jnp.asarray([2.0, -1.0, 3.0, -4.0]), jnp.asarray([1, 1, 0, 0])
  sums = classification_sums(logits_B, labels_B, jnp.zeros(4), jnp.ones(4))
  assert int(sums["correct"]) == 2
  assert "correct_top5" not in sums
  rows = classification_examples(logits_B, labels_B, jnp.zeros(4))
  np.testing.assert_array_equal(rows["prediction"], [1, 0, 1, 0])
  np.testing.assert_allclose(rows["probability"], 1 / (1 + np.exp(-np.abs([2.0, 1, 3, 4]))), rtol=1e-6)


def test_examples_name_the_likeliest_class_and_its_probability():
  logits_BC, labels_B, losses_B = classifier_data(11)
  rows = classification_examples(jnp.asarray(logits_BC), jnp.asarray(labels_B), jnp.asarray(losses_B))
  powers = np.exp(logits_BC.astype(np.float64))
  np.testing.assert_array_equal(rows["prediction"], logits_BC.argmax(1))
  np.testing.assert_allclose(rows["probability"], (powers / powers.sum(1, keepdims=True)).max(1), rtol=1e-6)
  assert {name: rows[name].dtype.name for name in rows} == {
    "label": "int32",
    "prediction": "int32",
    "loss": "float32",
    "probability": "float32",
  }


@pytest.mark.parametrize("batch", [250, 64])
def test_regression_is_scikit_learns_even_for_targets_like_years(batch):
  random = np.random.default_rng(0)
  targets_B = (2010 + random.normal(0, 3, 250)).astype(np.float32)
  predictions_B = (targets_B + random.normal(0, 1, 250)).astype(np.float32)
  losses_B = np.square(predictions_B - targets_B)

  def sums(predictions, targets, losses, mask):
    return regression_sums(predictions, targets, losses, mask, center=2000.0)

  summary = metrics.regression_summary(in_batches(sums, (predictions_B, targets_B, losses_B), batch))
  y, p = targets_B.astype(np.float64), predictions_B.astype(np.float64)
  assert summary["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(y, p), rel=1e-6)
  assert summary["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, p), rel=1e-6)
  assert summary["loss"] == pytest.approx(summary["mse"], rel=1e-6)
  # The centre is off by three standard deviations, which costs a digit; about 0 not one digit would be right.
  assert summary["r2"] == pytest.approx(sklearn.metrics.r2_score(y, p), abs=1e-5)


def test_r2_of_constant_targets_is_not_a_number():
  sums = regression_sums(jnp.zeros(3), jnp.full(3, 2.0), jnp.zeros(3), jnp.ones(3), center=2.0)
  assert math.isnan(metrics.regression_summary(sums)["r2"])


def test_no_examples_is_the_users_error():
  sums = classification_sums(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.zeros(2))
  with pytest.raises(UserError, match="no examples"):
    metrics.classification_summary(sums)


def test_sums_over_devices_are_those_of_one():
  logits_BC, labels_B, losses_B = classifier_data(64)
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
  arrays = [jax.device_put(array, rows) for array in (logits_BC, labels_B, losses_B, np.ones(64, np.float32))]
  sharded = classification_sums(*arrays)
  assert int(sharded["correct"]) == int((logits_BC.argmax(1) == labels_B).sum())


def test_macro_f1_is_scikit_learns():
  from sklearn.metrics import f1_score

  random = np.random.default_rng(0)
  logits_BC, labels_B = random.normal(size=(50, 4)).astype(np.float32), random.integers(0, 3, 50)
  mask_B = (random.random(50) < 0.8).astype(np.float32)
  parts = [slice(0, 20), slice(20, 50)]
  sums = [metrics.class_sums(logits_BC[part], jnp.asarray(labels_B[part]), mask_B[part]) for part in parts]
  real = mask_B > 0
  expected = f1_score(labels_B[real], logits_BC[real].argmax(axis=1), average="macro")
  assert metrics.macro_f1(metrics.add(*sums)) == pytest.approx(expected)
