"""Which updates a profile holds: those that were asked for, however many make a call and wherever a run begins."""

import dataclasses
import json
import time

import chex
import jax
import pytest
from tiny import Job, Told

from research import loop
from research.checkpoint import Checkpoints
from research.profiling import Profile, trace

PLAN = loop.Plan(total_steps=24, eval_every=8, checkpoint_every=12, log_every=4)


class Traced:
  """A training run with a profile of `updates`: the state, what was told, and what the profile says."""

  def __init__(self, job, directory, updates, *, state=None, update_of=lambda call: call, **more):
    self.told, plan = Told(), dataclasses.replace(PLAN, steps_per_call=job.steps_per_call, profile=updates)
    checkpoints = Checkpoints(directory / "checkpoints", keep=10)
    try:
      call = dataclasses.replace(job.call, program=update_of(job.call.program))
      with Profile(updates, directory / "profile", str, self.told.note) as profile:
        self.state = loop.fit(
          plan, state or job.state, call, job.feed, job.evaluate,
          checkpoints=checkpoints, report=self.told, scores=[], profile=profile, **more,
        )  # fmt: skip
    finally:
      checkpoints.close()
    path = directory / "profile" / "summary.json"
    self.summary = json.loads(path.read_text()) if path.exists() else None

  @property
  def counts(self):
    """How often operations ran that an update runs once: the commonest count."""
    counts = [each["count"] for each in self.summary["operations"]]
    return max(set(counts), key=counts.count)


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_it_holds_the_updates_asked_for_and_alters_none(tmp_path, steps_per_call):
  """An evaluation and a checkpoint lie among them; neither end is one of a call of five."""
  plain, told = Job(steps_per_call=steps_per_call), Told()
  checkpoints = Checkpoints(tmp_path / "plain", keep=10)
  plan = dataclasses.replace(PLAN, steps_per_call=steps_per_call)
  state = loop.fit(
    plan, plain.state, plain.call, plain.feed, plain.evaluate, checkpoints=checkpoints, report=told, scores=[]
  )
  checkpoints.close()
  traced = Traced(Job(steps_per_call=steps_per_call), tmp_path, (3, 14))
  assert traced.summary["updates"] == [3, 14]
  assert traced.counts == 11
  assert traced.summary["devices"] == 2
  assert 0 <= traced.summary["outside_device"] <= 1
  assert not any("eval" in each["program"] or "add_batch" in each["program"] for each in traced.summary["operations"])
  chex.assert_trees_all_equal(jax.device_get(traced.state), jax.device_get(state))
  assert traced.told.scores == told.scores
  for step in (8, 24):
    assert traced.told.lines[step]["train/loss"] == told.lines[step]["train/loss"]


def test_it_says_so_in_six_lines_and_leaves_a_trace_for_tensorboard(tmp_path):
  traced = Traced(Job(), tmp_path, (0, 3))
  first, *operations = traced.told.notes
  assert first.startswith("profile of 3 updates from step 0 on: ")
  assert "% of the time outside the device" in first
  assert [line[:2] for line in operations] == ["1.", "2.", "3.", "4.", "5."]
  shares = [each["share"] for each in traced.summary["operations"]]
  assert shares == sorted(shares, reverse=True)
  assert traced.summary["trace"].startswith("plugins/profile/")
  assert trace.read(tmp_path / "profile" / traced.summary["trace"]).seconds == traced.summary["seconds"]


def test_a_resumed_run_traces_what_is_left_and_afterwards_nothing(tmp_path):
  asked = iter(range(1, 100))
  stopped = Traced(Job(), tmp_path, (4, 10), stop=lambda: next(asked) == 7)
  assert stopped.summary["updates"] == [4, 7]
  for at, updates, notes in ((7, [7, 10], 6), (12, [7, 10], 0)):
    job = Job()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=10)
    restored = checkpoints.restore(at, job.abstract)
    checkpoints.close()
    resumed = Traced(job, tmp_path, (4, 10), state=restored)
    assert resumed.summary["updates"] == updates
    assert len(resumed.told.notes) == notes
  assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_slow_host_is_time_outside_the_device(tmp_path):
  def rested(call):
    def slow(state, inputs, count):
      jax.block_until_ready(state)
      time.sleep(0.02)
      return call(state, inputs, count)

    return slow

  slow = Traced(Job(), tmp_path, (2, 10), update_of=rested)
  assert slow.summary["outside_device"] * slow.summary["seconds"] >= 7 * 0.02


def test_a_trace_that_cannot_be_made_or_read_costs_a_note_and_no_run(tmp_path, monkeypatch):
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  jax.profiler.start_trace(tmp_path / "other", profiler_options=options)  # somebody else's
  try:
    refused = Traced(Job(), tmp_path / "a", (2, 4))
  finally:
    jax.profiler.stop_trace()
  assert [note.partition(":")[0] for note in refused.told.notes] == ["no profile"]

  def fail(path):
    raise ValueError("of another make")

  monkeypatch.setattr(trace, "read", fail)
  unread = Traced(Job(), tmp_path / "b", (2, 4))
  assert unread.told.notes == [
    f"the profile in {tmp_path / 'b' / 'profile'} cannot be read: ValueError: of another make"
  ]
  assert int(refused.state.step) == int(unread.state.step) == 24


def test_a_run_that_breaks_while_it_is_traced_leaves_no_trace_open(tmp_path):
  def broken(call):
    def update(state, inputs, count):
      raise RuntimeError("no more memory")

    return update

  with pytest.raises(RuntimeError, match="no more memory"):
    Traced(Job(), tmp_path, (0, 4), update_of=broken)
  assert Traced(Job(), tmp_path / "again", (0, 4)).counts == 4
