"""Bad numbers in every family, on every layout, and what a person sees of them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_strategies import FAMILIES, WAYS, job_of

from experiments import command, inputs
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research import replay
from research.data.order import batch_indices
from research.data.source import ArraySource


def spoilt(tree, which):
  """A state's parameters as NaN: all, or those of one network."""
  return {name: jax.tree.map(lambda x: x * np.float32("nan"), part) if name == which or not which else part
          for name, part in tree.items()}  # fmt: skip


def unchanged(job):
  """One good update, then one of each network's NaN: all arrays stay, bit for bit, and the update is counted."""
  call, feed = job.training_call(), job.data.train
  first = jax.device_get(job.initial_state())
  state, _ = call(job.initial_state(), feed.inputs(0), 1)
  good = jax.device_get(state)
  assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first.params, good.params)), strict=True))
  assert int(good.guard["skipped"]) == 0
  networks = list(good.params) if "discriminator" in good.params else [""]
  for count, network in enumerate(networks, 1):
    bad = good.replace(params=spoilt(good.params, network), guard={**good.guard, "skipped": np.int32(count - 1)})
    placed = jax.device_put(bad, jax.tree.map(lambda x: x.sharding, state))
    after = jax.device_get(call(placed, feed.inputs(1), 1)[0])
    assert int(after.step) == 2
    assert {name: int(value) for name, value in after.guard.items()} == {"skipped": count, "in_row": 1}
    for name in ("params", "opt_state", "extra"):
      jax.tree.map(np.testing.assert_array_equal, getattr(bad, name), getattr(after, name))
  feed.close()


QUICK = {"mlp", "gan", "gpt", "forecast"}


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_a_bad_update_changes_nothing(family):
  """Without `guard.guarded` in `steps._update` it fails for each: the optimizer's moments are NaN."""
  unchanged(job_of(family, ["--parallel.mesh=data:1"]))


@pytest.mark.parametrize(
  ("family", "way"),
  [
    ("mlp", "fsdp"), ("mlp", "pmap"), ("gan", "shard_map"),
    pytest.param("gpt", "fsdp_tp", marks=pytest.mark.slow), pytest.param("gpt", "pp", marks=pytest.mark.slow),
  ],
)  # fmt: skip
def test_all_devices_decide_alike(family, way):
  unchanged(job_of(family, WAYS[way]))


# A command. The readers refuse numbers that are not finite, so they are put in behind them.

RUN = [
  "--data.source=sklearn:iris", "--data.batch_size=8", "--run.steps=15", "--run.eval_every=15",
  "--run.checkpoint_every=4", "--run.log_every=1", "--model.widths=8", "--parallel.mesh=data:1", "--workdir=w",
]  # fmt: skip


def with_bad_batches(*steps):
  """The MLP's experiment, on data in which the examples of these batches are NaN."""

  def open_data(config, say, workdir):
    splits = inputs.open_data(config.data, say)
    train = splits.train
    arrays = {name: np.array(array) for name, array in train.stored().items()}
    for step in steps:
      arrays["features"][batch_indices(config.seed, step, config.data.batch_size, train.size)] = np.nan
    return dataclasses.replace(splits, train=ArraySource(train.name, train.schema, arrays, train.fingerprint))

  return dataclasses.replace(MLP, open_data=open_data)


def lines():
  return [json.loads(line) for line in Path("w/metrics.jsonl").read_text().splitlines()]


def test_a_run_passes_over_a_bad_batch_and_says_so(in_directory, capsys):
  assert command.main(with_bad_batches(3), RUN) == 0
  assert "alarm: an update was skipped by step 4, 1 in all" in capsys.readouterr().out
  told = {line["step"]: line for line in lines() if "train/loss" in line}
  assert "train/skipped" not in told[3]
  assert told[4]["train/loss"] == "NaN"
  assert [told[step]["train/skipped"] for step in (4, 5, 15)] == [1, 1, 1]
  assert np.isfinite(told[15]["train/loss"])


def test_a_run_goes_back_once_and_then_ends_with_76_and_can_go_on(in_directory, capsys):
  """`times=2` in the loop fails it, and so does a line that is not taken back."""
  experiment = with_bad_batches(9, 10, 11)
  assert command.main(experiment, [*RUN, "--run.bad_steps=3"]) == 76
  said = capsys.readouterr().out
  assert said.count("bad numbers 3 times in a row, last at step 12: the data's features is not finite in training") == 2
  assert said.count("back to the checkpoint of step 8, once") == 1
  assert "mend or leave them out" in said
  assert not Path("w/result.json").exists()
  assert Path("w/report.html").exists()
  told = lines()
  assert [line["step"] for line in told] == list(range(1, 13))
  assert told[-1]["train/skipped"] == 3
  assert [int(path.name) for path in sorted(Path("w/checkpoints").iterdir()) if path.name.isdigit()] == [4, 8]
  assert command.main(experiment, [*RUN, "--run.bad_steps=4"]) == 0  # how many are borne does not change the curve
  told = lines()
  assert [line["step"] for line in told if "train/loss" in line] == list(range(1, 16))
  assert [line["train/skipped"] for line in told if line["step"] == 15 and "train/loss" in line] == [3]


def test_a_replay_is_made_by_a_flag(in_directory, monkeypatch):
  """And changes nothing: the lines are those of a run without."""
  seen, right = [], replay.checked
  monkeypatch.setattr(replay, "checked", lambda *given: seen.append(0) or right(*given))
  assert command.main(MLP, [*RUN, "--run.check_replay_every=5"]) == 0
  first = [line["train/loss"] for line in lines() if "train/loss" in line]
  assert len(seen) == 3
  assert command.main(MLP, [*RUN, "--workdir=x"]) == 0
  told = [json.loads(line) for line in Path("x/metrics.jsonl").read_text().splitlines()]
  assert first == [line["train/loss"] for line in told if "train/loss" in line]


def test_spikes_under_the_mean_are_refused(in_directory, capsys):
  assert command.main(MLP, [*RUN, "--run.skip_spikes=0.5"]) == 2
  assert "would skip ordinary updates" in capsys.readouterr().err
