"""The loop: when it looks, saves and speaks; that nothing recompiles or syncs; that a resumed run is the same run."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from tiny import Job, Told

from research import evaluating, loop, steps
from research.checkpoint import Checkpoints
from research.recovery import BadNumbers
from research.signals import Stopped

PLAN = loop.Plan(total_steps=24, eval_every=8, checkpoint_every=6, log_every=4)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


def fit(job, directory, plan=PLAN, *, state=None, told=None, scores=None, **more):
  """Runs the loop; returns (state, what was told)."""
  told, plan = told or Told(), dataclasses.replace(plan, steps_per_call=job.steps_per_call)
  checkpoints = Checkpoints(directory, keep=10)
  try:
    state = loop.fit(
      plan, state or job.state, job.call, job.feed, job.evaluate,
      checkpoints=checkpoints, report=told, scores=[] if scores is None else scores, **more,
    )  # fmt: skip
    return state, told, checkpoints.steps
  finally:
    checkpoints.close()


def equal(a, b):
  """Bit for bit."""
  chex.assert_trees_all_equal(jax.device_get(a), jax.device_get(b))


def test_it_looks_saves_and_speaks_when_the_plan_says(tmp_path):
  state, told, saved = fit(Job(), tmp_path)
  assert int(state.step) == 24
  assert sorted(told.lines) == [4, 8, 12, 16, 20, 24]
  assert sorted(told.scores) == [8, 16, 24]
  assert saved == [6, 12, 18, 24]
  assert sorted(told.lines.keys() | set(told.reached)) == list(range(1, 25))


def test_lines_hold_the_metrics_of_their_own_step(tmp_path):
  _, told, _ = fit(Job(), tmp_path)
  job = Job()
  for step in range(24):
    job.state, metrics = job.call(job.state, job.feed.inputs(step), 1)
    if step + 1 in told.lines:
      assert told.lines[step + 1]["train/loss"] == float(metrics["loss"])


def test_training_learns(tmp_path):
  plan = dataclasses.replace(PLAN, total_steps=150, eval_every=150, checkpoint_every=150)
  _, told, _ = fit(Job(), tmp_path, plan)
  assert told.scores[150]["validation/accuracy"] > 0.9


@pytest.mark.parametrize(("at", "feed"), [(1, "device"), (7, "grain"), slow(8, "device"), slow(13, "device")])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(tmp_path, at, feed):
  whole, told_whole, _ = fit(Job(feed=feed), tmp_path / "whole")
  job, asked = Job(feed=feed), iter(range(1, 100))
  _, told, saved = fit(job, tmp_path / "parts", stop=lambda: next(asked) == at)
  assert saved[-1] == at
  assert told.notes == [f"stopped by a signal; step {at} is saved"]
  again = Job(feed=feed)
  checkpoints = Checkpoints(tmp_path / "parts", keep=10)
  restored = checkpoints.restore(at, again.abstract)
  checkpoints.close()
  resumed, told_again, _ = fit(again, tmp_path / "parts", state=restored, unjudged=PLAN.evaluates(at))
  equal(whole, resumed)
  for step, line in told_again.lines.items():
    assert line["train/loss"] == told_whole.lines[step]["train/loss"]
  assert {**told.scores, **told_again.scores} == told_whole.scores


def test_nothing_recompiles(tmp_path):
  job = Job()
  step = chex.assert_max_traces(job.task.step, n=1)
  evaluate = chex.assert_max_traces(job.task.evaluate, n=2)  # once for the shapes, once for the program
  job.task = dataclasses.replace(job.task, step=step, evaluate=evaluate)
  job.call = steps.training_call(job.task, job.feed, job.augment, 0, job.layout, 1, abstract=job.abstract, begin=False)
  job.evaluation = evaluating.evaluation_call(job.task, job.eval_feed, job.prepare, job.layout)
  fit(job, tmp_path)


def test_calls_of_several_steps_compile_once_whatever_their_length(tmp_path):
  job = Job(steps_per_call=5)
  job.task = dataclasses.replace(job.task, step=chex.assert_max_traces(job.task.step, n=2))  # shapes, program
  job.call = steps.training_call(job.task, job.feed, job.augment, 0, job.layout, 5, abstract=job.abstract, begin=False)
  _, told, saved = fit(job, tmp_path)
  assert saved == [6, 12, 18, 24]
  assert sorted(told.scores) == [8, 16, 24]


def test_several_steps_a_call_are_the_same_run_to_float_tolerance(tmp_path):
  one, told_one, _ = fit(Job(), tmp_path / "one")
  many, told_many, _ = fit(Job(steps_per_call=5), tmp_path / "many")
  # The same batches and keys; XLA may fuse a loop's body otherwise, so sums differ in their last bits. 24 steps of
  # Adam amplify that by its normalisation, hence 1e-4 and not 1e-6.
  chex.assert_trees_all_close(jax.device_get(one), jax.device_get(many), rtol=1e-4, atol=1e-5)
  for step in told_many.scores:
    one_loss, many_loss = (told.scores[step]["validation/loss"] for told in (told_one, told_many))
    assert many_loss == pytest.approx(one_loss, rel=1e-4)


def test_an_evaluation_that_was_broken_off_is_made_by_who_goes_on(tmp_path):
  """Its lines, its pictures and its place among the scores: as if nobody had stopped."""
  plan = dataclasses.replace(PLAN, best_metric="validation/loss")
  scores, again = [], []
  whole, told_whole, _ = fit(Job(), tmp_path / "whole", plan, scores=scores)
  job, evaluate = Job(), Job().evaluate

  def broken_off(state):
    if int(state.step) == 16:
      raise Stopped
    return evaluate(state)

  job.evaluate = broken_off
  _, told, saved = fit(job, tmp_path / "parts", plan, scores=again)
  assert saved[-1] == 16
  assert told.notes == ["stopped by a signal; step 16 is saved"]
  checkpoints = Checkpoints(tmp_path / "parts", keep=10)
  state = checkpoints.restore(16, job.abstract)
  checkpoints.close()
  state, told, _ = fit(Job(), tmp_path / "parts", plan, state=state, told=told, scores=again, unjudged=True)
  equal(state, whole)
  assert {step: line["train/loss"] for step, line in told.lines.items()} == {
    step: line["train/loss"] for step, line in told_whole.lines.items()
  }
  assert told.scores == told_whole.scores
  assert again == scores


@pytest.mark.parametrize("at", [6, slow(5)])
def test_several_steps_a_call_resume_bit_for_bit(tmp_path, at):
  whole, _, _ = fit(Job(steps_per_call=5), tmp_path / "whole")
  calls = iter(range(1, 100))
  wanted = {5: 1, 6: 2}[at]  # calls end at 5, and at the checkpoint of step 6
  _, _, saved = fit(Job(steps_per_call=5), tmp_path / "parts", stop=lambda: next(calls) == wanted)
  assert saved[-1] == at
  job = Job(steps_per_call=5)
  checkpoints = Checkpoints(tmp_path / "parts", keep=10)
  restored = checkpoints.restore(saved[-1], job.abstract)
  checkpoints.close()
  resumed, _, _ = fit(job, tmp_path / "parts", state=restored)
  equal(whole, resumed)


def test_an_implicit_transfer_in_the_hot_loop_is_an_error(tmp_path):
  job = Job()
  call = job.call
  job.call = steps.TrainingCall(
    lambda state, inputs, count: call(state.replace(step=state.step + np.int32(0)), inputs, count)
  )
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    fit(job, tmp_path)


def test_the_state_is_donated():
  job = Job()
  before = job.state
  job.call(job.state, job.feed.inputs(0), 1)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_a_bad_evaluation_is_told_and_stops_the_run(tmp_path):
  job, told = Job(), Told()
  job.evaluate = lambda state: {"validation/loss": float("nan"), "validation/r2": float("nan")}
  with pytest.raises(BadNumbers, match="validation/loss is not finite at step 8: stopped"):
    fit(job, tmp_path, told=told)
  assert told.rewound == [6]
  assert 8 in told.scores
  assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["6"]


def test_patience_stops_and_the_best_checkpoint_is_kept(tmp_path):
  plan = loop.Plan(100, eval_every=2, checkpoint_every=4, best_metric="validation/loss", patience=3)
  job, scores = Job(), []
  losses = iter([5.0, 3.0, 4.0, 4.0, 6.0, 1.0])
  job.evaluate = lambda state: {"validation/loss": next(losses)}
  checkpoints = Checkpoints(tmp_path, keep=1)
  state = loop.fit(
    plan, job.state, job.call, job.feed, job.evaluate, checkpoints=checkpoints, report=Told(), scores=scores
  )
  assert int(state.step) == 10
  assert checkpoints.steps == [4, 8]
  best = checkpoints.restore(4, job.abstract)
  assert int(best.step) == 4
  checkpoints.close()


def test_the_end_is_always_evaluated_and_saved(tmp_path):
  plan = loop.Plan(total_steps=5, eval_every=100, checkpoint_every=100)
  state, told, saved = fit(Job(), tmp_path, plan)
  assert (int(state.step), sorted(told.scores), saved) == (5, [5], [5])


def test_a_watch_hears_what_is_done_when_it_begins(tmp_path):
  """Mutation: a phase that `fit` does not tell leaves processes that hang in it without a name for it."""
  heard = []

  class Watch:
    def enter(self, step, phase):
      heard.append((step, phase))

  fit(Job(), tmp_path, dataclasses.replace(PLAN, total_steps=4, eval_every=2, checkpoint_every=4), watch=Watch())
  calls = {step: [(step, "data"), (step, "step")] for step in range(4)}
  calls[0][1] = (0, "compile")
  first, looked, saving = [(0, "compile")], [(2, "evaluation")], [(4, "saving")]
  assert heard == [*first, *calls[0], *calls[1], *looked, *calls[2], *calls[3], (4, "evaluation"), *saving, *saving]
