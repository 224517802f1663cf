"""A flag that is free to differ when a run goes on (`curve=False`) changes no bit of it; each one, from the schema.

A run begins with another value, is asked to stop, and goes on with the usual one; its arrays, lines and result are
those of a run that had the usual one all along. Those of ROUNDING make another program of the same batches and rules,
which may round otherwise: theirs are the same to float tolerance. Switched off once: with --model.dropout declared free
its test fails.
"""

import contextlib

import numpy as np
import pytest

from experiments import command as commands
from experiments import flags
from experiments.mlp.__main__ import EXPERIMENT
from research.checkpoint import Checkpoints
from tests.experiments.test_allow_change import another
from tests.faults import runs

RUN = {  # all that draws numbers, keeps averages or chooses
  "data.source": "sklearn:iris", "run.steps": 30, "run.eval_every": 10, "run.checkpoint_every": 10, "run.log_every": 5,
  "data.batch_size": 16, "parallel.mesh": "data:1", "model.widths": "8", "model.dropout": 0.2, "model.norm": "batch",
  "optim.ema_decay": 0.9, "data.validation_fraction": 0.2, "run.best_metric": "validation/loss",
}  # fmt: skip
FREE = [leaf for leaf in flags.leaves(EXPERIMENT.schema) if not leaf.changes_curve]
QUICK = ("run.checkpoint_every", "run.log_every", "data.feed")
VALUES = {  # where the next best value is not possible on one device, or would say nothing
  "data.dir": "{tmp}/sets",  # of tfds: sets, whose content is compared by a digest (test_examples.py)
  "data.cache_dir": "{tmp}/cache",
  "data.eval_batch_size": "7",
  "data.device_budget_mb": "0",  # fed by Grain
  "data.feed": "grain",
  "parallel.mesh": "data:1,model:1",  # of more devices only --run.deterministic_shards is so: test_same_bits.py
  "parallel.strategy": "fsdp",
  "run.bad_steps": "0",
  "run.check_replay_every": "3",
  "run.checkpoint_every": "7",
  "run.log_every": "1",
  "run.profile_steps": "3:6",
  "run.watchdog": "0",
  "run.stall_seconds": "0",
}  # fmt: skip

BITS = ("step", "state", "lines", "samples", "events", "result")
# Where a batch is gathered, within the program or before it; and a number in the compiled guard, which moves how the
# rest of the program rounds on some processors.
ROUNDING = ("data.feed", "data.device_budget_mb", "run.bad_steps")

# A pipeline's, which a perceptron is not; it moves sums as a mesh does, in the last bits.
REFUSED = {"parallel.micro_batches": "are parts in a pipeline, which --parallel.strategy=dp is not"}


def line(workdir, *more):
  return [*(f"--{name}={value}" for name, value in RUN.items()), *more, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert commands.main(EXPERIMENT, line(workdir)) == 0
  return {**runs.digests(workdir), "arrays": arrays(workdir)}


def arrays(workdir):
  with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
    return checkpoints.arrays(checkpoints.newest(), ("params", "opt_state", "extra"))


def assert_close(found, whole):
  """Arrays and lines of another program: the same to float tolerance, after 30 updates of AdamW."""
  assert found["arrays"].keys() == whole["arrays"].keys()
  for name, array in whole["arrays"].items():
    np.testing.assert_allclose(found["arrays"][name], array, rtol=1e-3, atol=1e-5, err_msg=name)
  assert found["events"] == whole["events"]
  for mine, theirs in zip(found["lines"], whole["lines"], strict=True):
    assert dict(mine) == pytest.approx(dict(theirs), rel=2e-4)


@pytest.mark.parametrize(
  "leaf", [pytest.param(leaf, id=leaf.name, marks=() if leaf.name in QUICK else pytest.mark.slow) for leaf in FREE]
)
def test_a_free_flag_changes_no_bit(tmp_path, whole, stopping_after, capsys, leaf):
  usual = flags.values(flags.parse(EXPERIMENT.schema, line(tmp_path)[:-1])[0])[leaf.name]
  value = VALUES.get(leaf.name) or flags.write_value(another(leaf, usual))
  value = value.format(tmp=tmp_path)
  assert value != flags.write_value(usual)
  workdir = tmp_path / "run"
  with stopping_after(12):
    code = commands.main(EXPERIMENT, line(workdir, f"--{leaf.name}={value}"))
  if leaf.name in REFUSED:
    assert code == 2
    assert REFUSED[leaf.name] in capsys.readouterr().err
    return
  assert code == commands.STOPPED
  assert commands.main(EXPERIMENT, line(workdir)) == 0
  found = {**runs.digests(workdir), "arrays": arrays(workdir)}
  if leaf.name in ROUNDING:
    assert_close(found, whole)
    return
  if leaf.name == "run.log_every":  # more lines, and among them the same
    usual_ones = [each for each in whole["lines"] if each in found["lines"]]
    assert usual_ones == whole["lines"]
    assert len(found["lines"]) > len(whole["lines"])
    found = {**found, "lines": whole["lines"], "events": whole["events"]}
  assert [found[part] for part in BITS] == [whole[part] for part in BITS]


def test_each_value_is_of_a_flag_that_is_free():
  assert VALUES.keys() <= {leaf.name for leaf in FREE}
  assert len(FREE) >= 15
