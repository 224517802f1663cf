"""`--run.deterministic_shards`: the same bits on any number of devices, for every experiment there is.

With one multiply-add (no `round_twice`) tests here fail; that `lax.psum` in the place of `Shards._between` has another
order is seen in test_shards.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command as commands
from experiments.job import make_job
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research.checkpoint import Checkpoints
from tests import started
from tests.experiments import same_bits_worker, test_resume
from tests.experiments.test_strategies import EXPERIMENTS

SHARDS = "--run.deterministic_shards=8"
QUICK = ("mlp",)


def on(devices, family, *flags):
  """{devices: digests} in a process of its own: XLA's flag against fused multiply-adds is read when one starts."""
  command = [sys.executable, "-m", "tests.experiments.same_bits_worker", ",".join(flags), devices, family]
  done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=560)
  assert done.returncode == 0, done.stderr
  return {count: digests for _, count, digests in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
  "family",
  [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in same_bits_worker.MORE],
)
def test_any_number_of_devices_gives_the_same_bits(family):
  """States, metrics, evaluation's sums; with dropout, augmentation, batch norm, averages and all that a family has."""
  found = on("8,2,1", family, SHARDS)
  assert found[8] == found[2]
  assert found[8] == found[1]


def test_every_experiment_is_here():
  assert {family.partition(",")[0] for family in same_bits_worker.MORE} == set(EXPERIMENTS)


def test_grain_feeds_the_same_bits():
  found = on("4", "linear", SHARDS, "--data.feed=grain")[4]
  assert found == on("1", "linear", SHARDS, "--data.feed=device")[1]


def test_without_the_flag_bits_differ():
  """By how little, is in test_strategies.py: 2e-4 of a metric, 1e-3 of a parameter after three updates."""
  found = on("8,1", "linear")
  assert found[8][0] == found[1][0]  # the first state
  assert found[8] != found[1]


RUN = [
  *test_resume.COMMAND, SHARDS, "--run.steps=60", "--run.eval_every=60", "--run.checkpoint_every=10",
  "--run.log_every=5", "--model.norm=batch",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # a bare load has no sharding to give
@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits_on_fewer_devices(tmp_path):
  """8 devices, killed; 2, asked to stop; 1 to the end: its lines, state and result are those of 8 alone."""
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  for step, devices, number in ((10, 8, signal.SIGKILL), (30, 2, signal.SIGTERM)):
    process = test_resume.start(workdir, [*RUN, f"--parallel.mesh=data:{devices}"])
    test_resume.wait_for_step(process, workdir, step)
    process.send_signal(number)
    process.communicate(timeout=60)
  assert "going on from step" in test_resume.finish(workdir, [*RUN, "--parallel.mesh=data:1"])
  test_resume.finish(whole, [*RUN, "--parallel.mesh=data:8"])
  test_resume.assert_same(whole, workdir)


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # a bare load has no sharding to give
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["evaluating", "asked in evaluation"])
def test_stopped_in_evaluation_it_goes_on_with_the_same_bits_on_fewer_devices(tmp_path, phase):
  """On 8 devices it is stopped while it evaluates after 40 updates, which are not saved yet; on 2 it goes on.

  Stuck there, another thread saves what it holds; else the evaluation is broken off, and made anew afterwards. Switched
  off once: without `rescue.holding` in the loop it goes on from step 30; where `Stopped` is not caught there, it ends
  with 1 and not 75.
  """
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  flags = [*RUN[3:], "--run.eval_every=20", "--run.checkpoint_every=30", "--run.grace_seconds=6"]
  stuck = [sys.executable, str(Path(__file__).parents[1] / "faults" / "stuck.py")]
  process = test_resume.start(workdir, [*stuck, phase, "-m", "experiments.mlp", *flags, "--parallel.mesh=data:8"])
  try:
    if phase == "evaluating":
      while (line := process.stdout.readline()) not in ("stuck\n", ""):
        pass
      assert line, "it ended before it came there"
      process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=90)[0]
  finally:
    process.kill()
    process.communicate()
  assert process.returncode == 75, told
  assert "going on from step 40" in test_resume.finish(workdir, [*RUN[:3], *flags, "--parallel.mesh=data:2"])
  test_resume.finish(whole, [*RUN[:3], *flags, "--parallel.mesh=data:8"])
  test_resume.assert_same(whole, workdir)


def last_state(workdir):
  """Read with a layout, as what two processes have saved asks for one."""
  job = make_job(MLP, commands.read(MLP, [f"--config={workdir}"]).config, lambda line: None)
  with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
    return same_bits_worker.digest(checkpoints.restore(checkpoints.newest(), job.abstract_state))


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path):
  flags = [*RUN[3:], "--parallel.mesh=data:8"]
  ended = started.run(2, ["-m", "experiments.mlp", *flags, f"--workdir={tmp_path / 'two'}"])
  assert [code for code, *_ in ended] == [0, 0], ended
  test_resume.finish(tmp_path / "one", [*RUN, "--parallel.mesh=data:8"])
  assert test_resume.lines(tmp_path / "two") == test_resume.lines(tmp_path / "one")
  assert last_state(tmp_path / "two") == last_state(tmp_path / "one")


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--run.deterministic_shards=6"], "--run.deterministic_shards=6 is no power of two; 4 is"),
    (["--run.deterministic_shards=7"], "--run.deterministic_shards=7 is no power of two; 8 is"),
    (["--data.batch_size=20"], "does not divide into --run.deterministic_shards=8; 24 would"),
    (["--optim.micro_batches=4"], "into --run.deterministic_shards=8 of 4 parts; 32 would"),
    (["--parallel.strategy=fsdp"], "is for --parallel.strategy=dp, and not for fsdp"),
    (["--parallel.strategy=auto"], "is for --parallel.strategy=dp, and not for auto"),
    (["--parallel.compile=pmap"], "leave --parallel.compile out"),
    (["--run.deterministic_shards=4", "--parallel.mesh=data:8"], "over 8 devices; --parallel.mesh=data:4 would do"),
    (["--run.deterministic_shards=16", "--parallel.mesh=data:3"], "over 3 devices; --parallel.mesh=data:2 would do"),
  ],
)
def test_what_cannot_be_is_one_line(flags, said, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # to be as it was
  arguments = ["--config=iris", "--data.batch_size=16", SHARDS, *flags, f"--workdir={tmp_path / 'run'}"]
  assert commands.main(MLP, arguments) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  assert said in error
  assert not (tmp_path / "run").exists()
