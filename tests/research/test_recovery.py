"""After too many bad updates in a row: back to the last checkpoint, once; then the end, with a reason."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Job, Told, counters, recovering, spoilt

from research import guard, loop, steps
from research.checkpoint import Checkpoints
from research.recovery import BadNumbers
from research.report import Report

PLAN = loop.Plan(total_steps=24, eval_every=8, checkpoint_every=6, log_every=1)


def breaks(job, updates, times=99):
  """Makes a job's calls lie: the state that the update from one of these steps starts from is poisoned, at first."""
  right, left = job.call, [times]

  def lying(state, inputs, count):
    if int(jax.device_get(state.step)) in updates and left[0]:
      left[0] -= 1
      good = jax.tree.map(jnp.copy, state)
      after, metrics = right(state.replace(params=jax.tree.map(lambda x: x * nan, state.params)), inputs, count)
      return good.replace(step=after.step, guard=after.guard), metrics
    return right(state, inputs, count)

  nan = jax.device_put(jnp.float32("nan"), job.layout.replicated)
  job.call = steps.TrainingCall(lying)
  return job


def test_a_lying_machine_costs_one_way_back(tmp_path):
  """`bad_steps` in a row go back to the last checkpoint; the run ends with the bits of one that nothing happened to.

  A `Recovery` that may not go back (times=0) fails it, and so does one that does not rewind the report."""
  whole, expected, _ = recovering(Job(rules=guard.Rules(3)), tmp_path / "whole", dataclasses.replace(PLAN, bad_steps=3))
  job = breaks(Job(rules=guard.Rules(3)), {13, 14, 15}, times=3)
  scores = []
  state, told, saved = recovering(job, tmp_path / "run", dataclasses.replace(PLAN, bad_steps=3), scores=scores)
  chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(state))
  assert told.rewound == [12]
  assert saved == [6, 12, 18, 24]
  (note,) = told.notes
  assert "3 times in a row, last at step 16" in note
  assert "it is good when it is repeated" in note
  assert note.endswith("back to the checkpoint of step 12, once")
  assert told.lines.keys() == expected.lines.keys()
  assert all(told.lines[step]["train/loss"] == line["train/loss"] for step, line in expected.lines.items())


def test_a_second_time_ends_it_and_the_last_checkpoint_is_finite(tmp_path):
  """Saving without a look at `frozen` fails it."""
  job, told = breaks(Job(rules=guard.Rules(3)), {13, 14, 15}), Told()
  with pytest.raises(BadNumbers, match="bad numbers 3 times in a row, last at step 16"):
    recovering(job, tmp_path, dataclasses.replace(PLAN, bad_steps=3), report=told)
  assert told.rewound == [12]
  checkpoints = Checkpoints(tmp_path, keep=10)
  assert checkpoints.steps == [6, 12]
  restored = checkpoints.restore(12, job.abstract)
  checkpoints.close()
  assert guard.not_finite(restored) == ""
  assert int(restored.guard["skipped"]) == 0


def test_fewer_than_so_many_in_a_row_are_passed_over(tmp_path):
  job = breaks(Job(rules=guard.Rules(3)), {2, 3, 5, 13, 14})
  state, told, _ = recovering(job, tmp_path, dataclasses.replace(PLAN, bad_steps=3))
  assert told.rewound == told.notes == []
  assert counters(state) == {"skipped": 5, "in_row": 0}
  assert "train/skipped" not in told.lines[2]
  assert [told.lines[step]["train/skipped"] for step in (3, 4, 5, 6, 24)] == [1, 2, 2, 3, 5]
  assert not any(name.endswith(guard.IN_ROW) for line in told.lines.values() for name in line)


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_without_a_checkpoint_it_ends_at_once_and_names_data_and_examples(tmp_path, steps_per_call):
  job, told = Job(rules=guard.Rules(2), steps_per_call=steps_per_call, data=spoilt(np.inf, slice(None))), Told()
  with pytest.raises(BadNumbers, match=r"in a row, last at step 2: the data's features is not finite in training "
                     r"examples (\d+, ){4}\d+ … \(16 in all\): stopped; mend or leave them out"):  # fmt: skip
    recovering(job, tmp_path, dataclasses.replace(PLAN, bad_steps=2), report=told)
  assert told.rewound == []
  assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]
  assert max(told.lines) == 2
  assert told.lines[2]["train/skipped"] == 2
  assert not np.isfinite(told.lines[2]["train/loss"])


def test_no_bad_step_is_borne_if_none_is_allowed(tmp_path):
  """`times=1` whatever is asked for fails it. The one example that is bad is named."""
  example = int(Job().feed.plan.rows(2)[0][0])
  job, told, bad = Job(rules=guard.Rules(0), data=spoilt(np.nan, example)), Told(), 2
  plan = dataclasses.replace(PLAN, bad_steps=0, checkpoint_every=1, log_every=1000)
  wanted = f"bad numbers at step {bad + 1}: the data's features is not finite in training examples {example}: stopped"
  with pytest.raises(BadNumbers, match=wanted):
    recovering(job, tmp_path, plan, report=told)
  assert told.rewound == []
  saved = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
  assert max(saved) == bad


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
  """Parameters that became infinite by finite gradients. Leaving `not_finite` out of the loop fails it."""
  job, told = Job(), Told()
  right = job.call
  infinite = jax.device_put(jnp.float32("inf"), job.layout.replicated)

  def overflows(state, inputs, count):
    state, metrics = right(state, inputs, count)
    if int(jax.device_get(state.step)) in (12, 18):
      state = state.replace(extra={**state.extra, "ema": jax.tree.map(lambda x: x + infinite, state.extra["ema"])})
    return state, metrics

  job.call = steps.TrainingCall(overflows)
  with pytest.raises(BadNumbers, match=r"extra/ema/.* is not finite at step 12: stopped"):
    recovering(job, tmp_path, PLAN, report=told)
  assert told.rewound == [6]
  assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["6"]


def test_a_report_goes_back_with_it_and_tells_no_step_twice(tmp_path):
  """`Report.rewind` that does nothing fails it."""
  workdir = tmp_path / "run"
  job = breaks(Job(rules=guard.Rules(3)), {13, 14, 15}, times=3)
  with Report(workdir, header={}, total_steps=24, batch_size=16, quiet=True) as report:
    recovering(job, workdir / "checkpoints", dataclasses.replace(PLAN, bad_steps=3), report=report)
  lines = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  trained = [line["step"] for line in lines if "train/loss" in line]
  assert trained == list(range(1, 25))
  assert [line["step"] for line in lines if "validation/loss" in line] == [8, 16, 24]
  assert not any("train/skipped" in line for line in lines)
  assert events(workdir) == [(line["step"], name) for line in lines for name in line if name not in ("step", "time")]


def events(workdir):
  """(step, name) of every scalar in TensorBoard's files."""
  import struct

  from tensorboardX.proto.event_pb2 import Event

  (path,) = Path(workdir, "tensorboard").iterdir()
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    event = Event.FromString(data[12 : 12 + length])
    found += [(event.step, value.tag) for value in event.summary.value if value.HasField("simple_value")]
    data = data[16 + length :]
  return found


def test_no_checkpoint_is_made_amid_bad_updates(tmp_path):
  """It would be a place to go back to that nothing good comes after. Saving whatever `in_row` is fails it."""
  job = breaks(Job(rules=guard.Rules(3)), {5, 11, 12, 13})
  with pytest.raises(BadNumbers, match="last at step 14"):
    recovering(job, tmp_path, dataclasses.replace(PLAN, bad_steps=3, checkpoint_every=3, eval_every=24))
  assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [3, 9]
