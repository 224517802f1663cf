"""The supervised task: devices, accumulation, masks, averages and dtypes change nothing that they should not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Job, compiled

from research import losses
from research.models.mlp import MLP
from research.supervised import supervised


def updates(job, count=3):
  for step in range(count):
    job.state, metrics = job.call(job.state, job.feed.inputs(step), 1)
  return jax.device_get(job.state), jax.device_get(metrics)


def test_eight_devices_train_as_one_does():
  one, _ = updates(Job(mesh="data:1"))
  eight, _ = updates(Job(mesh="data:8"))
  # Sums over the batch are taken in another order; Adam divides by their root. Batch norm is over the global batch.
  chex.assert_trees_all_close(one, eight, rtol=2e-5, atol=1e-6)


def eager(micro_batches=1, **more):
  model = MLP(outputs=3, widths=(8,), activation="tanh")
  return supervised(model, optax.sgd(0.1), loss="softmax", micro_batches=micro_batches, **more)


def plain(micro_batches=1, **more):
  return compiled(eager(micro_batches, **more))


def batch(size=12, mask=None):
  rng = np.random.default_rng(1)
  return {
    "features": jnp.asarray(rng.standard_normal((size, 4)), jnp.float32),
    "label": jnp.asarray(rng.integers(0, 3, size), jnp.int32),
    "mask": jnp.ones(size, jnp.float32) if mask is None else jnp.asarray(mask, jnp.float32),
    "index": jnp.arange(size, dtype=jnp.int32),
  }


@pytest.mark.parametrize("mask", [None, [1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0], [0] * 11 + [1]])
@pytest.mark.parametrize("micro_batches", [2, 3, 12])
def test_accumulation_equals_the_large_batch(mask, micro_batches):
  key = jax.random.key(0)
  whole, parts = plain(), plain(micro_batches)
  state = whole.init(key, batch())
  a, told_a = whole.step(state, batch(mask=mask), key)
  b, told_b = parts.step(state, batch(mask=mask), key)
  chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(told_a, told_b, rtol=1e-5)


def test_masked_examples_count_for_nothing():
  task, key = plain(), jax.random.key(0)
  state = task.init(key, batch())
  mask = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
  garbage = {**batch(mask=mask), "features": batch()["features"].at[5:].set(1e6)}
  few = {name: value[:5] for name, value in batch().items()}
  # Sums of 12 terms and of 5 round differently: in float32 by 1e-9 where the terms are of order 1e-2.
  chex.assert_trees_all_close(task.step(state, garbage, key)[0], task.step(state, few, key)[0], rtol=1e-5, atol=2e-9)
  sums, expected = task.evaluate(state, garbage), task.evaluate(state, few)
  chex.assert_trees_all_close(sums, expected, rtol=1e-6)
  assert int(sums["count"]) == 5


def test_a_step_is_the_gradient_of_the_mean_loss():
  task, key = eager(), jax.random.key(3)  # each operation rounds alone, in the step as in the line that is expected
  state = task.init(key, batch())
  model = MLP(outputs=3, widths=(8,), activation="tanh")

  def loss(params):
    logits_BC = model.apply({"params": params}, batch()["features"], train=True)
    return losses.softmax_cross_entropy(logits_BC, batch()["label"]).mean()

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(loss)(state.params))
  new, told = task.step(state, batch(), key)
  chex.assert_trees_all_close(new.params, expected, rtol=1e-6)
  assert float(told["loss"]) == pytest.approx(float(loss(state.params)), rel=1e-6)
  assert int(new.step) == 1


def test_evaluation_uses_the_average_where_there_is_one():
  task, key = plain(ema_decay=0.5), jax.random.key(0)
  state = task.init(key, batch())
  for _ in range(5):
    state, _ = task.step(state, batch(), key)
  with_average = task.evaluate(state, batch())["loss"]
  as_params = plain().evaluate(state.replace(params=state.extra["ema"], extra={}), batch())["loss"]
  without = plain().evaluate(state.replace(extra={}), batch())["loss"]
  assert float(with_average) == float(as_params) != float(without)


def test_a_regression_learns_in_the_targets_own_unit():
  model = MLP(outputs=1, widths=(), squeeze=True)
  unit = {"target_center": 1000.0, "target_scale": 50.0}
  task = compiled(supervised(model, optax.sgd(0.3), loss="mean_squared_error", **unit))
  features = jnp.asarray(np.random.default_rng(0).standard_normal((64, 1)), jnp.float32)
  data = {"features": features, "target": 1000 + 50 * features[:, 0], "mask": jnp.ones(64)}
  state = task.init(jax.random.key(0), data)
  for _ in range(100):
    state, _ = task.step(state, data, jax.random.key(0))
  summary = task.summarize(jax.device_get(task.evaluate(state, data)))
  assert summary["mae"] < 0.01
  assert summary["r2"] > 0.9999
  np.testing.assert_allclose(task.per_example(state, data)["prediction"], data["target"], rtol=1e-4)


def test_bfloat16_computes_and_float32_remembers():
  model = MLP(outputs=3, widths=(8,), dtype="bfloat16")
  task = compiled(supervised(model, optax.sgd(0.1), loss="softmax"))
  state = task.init(jax.random.key(0), batch())
  new, told = task.step(state, batch(), jax.random.key(0))
  chex.assert_trees_all_equal_dtypes(state, new)
  assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
  assert told["loss"].dtype == jnp.float32


def test_flops_of_a_step_are_three_times_the_products():
  assert plain().flops(batch()) == 3 * 2 * 12 * (4 * 8 + 8 * 3)


def test_mirrored_evaluation_is_the_mean_of_both_sides_and_training_is_as_before():
  images_BHWC = jnp.asarray(np.random.default_rng(2).standard_normal((6, 4, 4, 1)), jnp.float32)
  ones_B, index_B = jnp.ones(6), jnp.arange(6, dtype=jnp.int32)
  data = {"image": images_BHWC, "label": index_B % 3, "mask": ones_B, "index": index_B}
  flipped = {**data, "image": images_BHWC[:, :, ::-1]}
  plain_task, mirrored = plain(), plain(mirrored=True)
  state = plain_task.init(jax.random.key(0), data)
  outputs = lambda batch: MLP(outputs=3, widths=(8,), activation="tanh").apply(  # noqa: E731
    {"params": state.params}, batch["image"], train=False
  )
  found, other = mirrored.per_example(state, data), mirrored.per_example(state, flipped)
  wanted = losses.softmax_cross_entropy((outputs(data) + outputs(flipped)) / 2, data["label"])
  np.testing.assert_allclose(found["loss"], wanted, rtol=1e-6)
  np.testing.assert_allclose(found["loss"], other["loss"], rtol=1e-6)
  np.testing.assert_array_equal(mirrored.features(state, data), plain_task.features(state, data))
  key = jax.random.key(1)
  chex.assert_trees_all_equal(mirrored.step(state, data, key), plain_task.step(state, data, key))
