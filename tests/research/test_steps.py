"""Compiled calls: evaluation counts every example once whatever the batch, and rows come back in the split's order."""

import jax
import numpy as np
import pytest
from tiny import Job

from research import evaluating, steps
from research.data import feeds
from research.kernels import choice


def evaluated(batch_size, kind="device", mesh="data:2"):
  job = Job(mesh=mesh)
  plan = feeds.InOrder(batch_size, job.source.size)
  (feed,) = feeds.make_feeds(job.source, job.mesh, [plan], kind=kind, budget_bytes=0)
  return job, feed, evaluating.evaluation_call(job.task, feed, job.prepare, job.layout)(job.state)


@pytest.mark.parametrize(("batch_size", "kind"), [(80, "device"), (24, "device"), (24, "grain"), (2, "grain")])
def test_the_batch_size_does_not_change_an_evaluation(batch_size, kind):
  _, _, whole = evaluated(80)
  _, _, sums = evaluated(batch_size, kind)
  assert int(sums["count"]) == 80
  assert int(sums["correct"]) == int(whole["correct"])
  assert float(sums["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)


def test_an_evaluation_can_be_repeated():
  job, _, first = evaluated(24)
  assert job.evaluation(job.state)["loss"] == job.evaluation(job.state)["loss"] == first["loss"]


def test_only_so_many_evaluation_calls_are_under_way(monkeypatch):
  """80 examples by 2 are 40 calls; without a wait among them virtual devices have hung in their all-reduces."""
  waits, wait = [], jax.block_until_ready
  monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(x) or wait(x))
  _, _, sums = evaluated(2)
  assert int(sums["count"]) == 80
  assert len(waits) == 40 // 16 + 1  # the last for the sums, on every device


def test_rows_come_in_the_splits_order_without_padding():
  job, feed, sums = evaluated(24)
  rows = evaluating.examples(job.task, feed, job.prepare, job.state)
  np.testing.assert_array_equal(rows["index"], np.arange(80))
  np.testing.assert_array_equal(rows["label"], job.source.column("label"))
  assert (rows["label"] == rows["prediction"]).sum() == sums["correct"]
  assert rows["loss"].sum() == pytest.approx(float(sums["loss"]), rel=1e-6)
  assert ((rows["probability"] >= 0.5) & (rows["probability"] <= 1)).all()


def test_the_abstract_state_is_the_states_shape():
  job = Job()
  describe = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding), tree)  # noqa: E731
  assert describe(job.abstract) == describe(job.state)


def test_seeds_differ_and_repeat():
  a, b, c = (jax.device_get(Job(seed=seed).state.params) for seed in (0, 0, 1))
  same = jax.tree.map(np.array_equal, a, b)
  assert all(jax.tree.leaves(same))
  assert not np.array_equal(a["hidden_0"]["kernel"], c["hidden_0"]["kernel"])


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_step_compiled_ahead_is_the_same_step(steps_per_call):
  job = Job(steps_per_call=steps_per_call)
  ahead = steps.training_call(job.task, job.feed, job.augment, 0, job.layout, steps_per_call, abstract=job.abstract)
  copy = lambda: jax.tree.map(jax.numpy.copy, job.state)  # noqa: E731
  results = [call(copy(), job.feed.inputs(0), steps_per_call) for call in (job.call, ahead, ahead)]
  for state, metrics in results[1:]:
    assert int(state.step) == steps_per_call
    jax.tree.map(np.testing.assert_array_equal, (state, metrics), results[0])


def test_the_kernels_of_a_step_compiled_ahead_are_those_of_the_thread_that_asked():
  job = Job()
  arguments = (job.task, job.feed, job.augment, 0, job.layout, 1)
  assert steps.training_call(*arguments, abstract=job.abstract, begin=False).forms() == {}
  forms = {"dense.weight_gradient": "cpu", "dense.product": "xla", "dense.input_gradient": "xla", "dropout": "cpu"}
  assert steps.training_call(*arguments, abstract=job.abstract).forms() == forms
  with choice.use(dense="xla"):
    call = steps.training_call(*arguments, abstract=job.abstract)
  assert call.forms() == {**forms, "dense.weight_gradient": "xla"}


def test_what_cannot_be_compiled_ahead_is_told_by_the_first_call():
  job = Job()
  wrong = job.abstract.replace(params={})
  call = steps.training_call(job.task, job.feed, job.augment, 0, job.layout, 1, abstract=wrong)
  with pytest.raises(Exception, match="hidden_0"):
    call(job.state, job.feed.inputs(0), 1)
