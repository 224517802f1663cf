"""A signal in any phase ends a run within its deadline with 75, and what goes on afterwards is the uninterrupted run.

Switched off once: without `rescue.holding` around data and evaluation those two end without their last updates, and
`went_on_from` fails.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import command as commands
from experiments.mlp.__main__ import EXPERIMENT
from tests.faults import runs

STUCK = str(Path(__file__).with_name("stuck.py"))
FLAGS = [
  "--config=iris", "--run.steps=60", "--run.eval_every=15", "--run.checkpoint_every=10", "--run.log_every=5",
  "--data.batch_size=16", "--data.feed=grain", "--parallel.mesh=data:1", "--model.widths=8", "--optim.ema_decay=0.9",
  "--data.validation_fraction=0.1", "--run.best_metric=validation/loss", "--run.grace_seconds=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert commands.main(EXPERIMENT, [*FLAGS, f"--workdir={workdir}"]) == 0
  return runs.digests(workdir)


@pytest.mark.parametrize(
  ("phase", "went_on_from"),
  [
    ("compiling", 0), ("waiting for data", 14), ("evaluating", 30),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (("reading data", 0), ("saving", 10), ("ending", 60))),
  ],
)  # fmt: skip
def test_a_signal_in_any_phase(tmp_path, capsys, whole, phase, went_on_from):
  workdir = tmp_path / "run"
  command = [sys.executable, STUCK, phase, "-m", "experiments.mlp", *FLAGS, f"--workdir={workdir}"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  try:
    while (line := process.stdout.readline()) not in ("stuck\n", ""):
      pass
    assert line, "it ended before it came there"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 75, told
    assert time.monotonic() - began < 3 + 15  # on a busy machine
    assert "stopped by a signal" in told
  finally:
    process.kill()
    process.communicate()

  assert commands.main(EXPERIMENT, [*FLAGS, f"--workdir={workdir}"]) == 0
  told = capsys.readouterr().out
  found = re.search(r"going on from step (\d+)", told)
  assert int(found[1] if found else 0) == went_on_from
  assert runs.digests(workdir) == whole


@pytest.mark.slow
def test_a_signal_to_what_is_done_shows_no_traceback(tmp_path):
  """It was raised in whatever was taken apart just then, where the imports' handler raised an exception."""
  command = [sys.executable, "-m", "experiments.mlp", *FLAGS, f"--workdir={tmp_path / 'run'}"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  while (line := process.stdout.readline()) and not line.startswith("report "):
    pass
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert (process.returncode, err) in ((0, ""), (75, "stopped\n"))


@pytest.mark.slow
def test_a_signal_at_the_last_update_says_what_is_left(tmp_path):
  """Mutation: without the look in `work._train` it ends with 75 and no word, where the signal came in time."""
  workdir = tmp_path / "run"
  command = [sys.executable, "-m", "experiments.mlp", *FLAGS, "--run.log_every=1", f"--workdir={workdir}"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  while (line := process.stdout.readline()) and not line.startswith("step 60/60"):
    pass
  process.send_signal(signal.SIGTERM)
  told = process.communicate(timeout=60)[0]
  assert process.returncode in (0, 75), told
  assert "stopped" in told or process.returncode == 0
