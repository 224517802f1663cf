"""The account of a run's wall time is what a clock outside of it says, over a kill.

Switched off once: without the thread that writes lines between two checkpoints (`Clock._look_after`) 2.3 s of 20 are
missing, where `Clock` begins when the command is read and not with its process 3.0, and without the account that is
written once the page is made 4.1.
"""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from research import goodput
from tests.experiments.test_resume import wait_for_step

FLAGS = [
  "--config=digits", "--run.steps=2000", "--run.eval_every=500", "--run.checkpoint_every=500", "--run.log_every=10",
  "--parallel.mesh=data:1", "--model.widths=256,256",
]  # fmt: skip
AT_EXIT = 0.3  # seconds: to start a process, and to take an interpreter apart, twice


def life(workdir):
  command = [sys.executable, "-m", "experiments.mlp", *FLAGS, f"--workdir={workdir}"]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow  # twenty seconds, since shares of less are not exact
def test_the_shares_are_the_wall_time_of_both_lives(tmp_path):
  workdir, began = tmp_path / "run", time.monotonic()
  process = life(workdir)
  saved = wait_for_step(process, workdir, 500)
  at_checkpoint = time.monotonic()
  time.sleep(1.7)
  assert process.poll() is None, "it was too quick to be killed"
  process.send_signal(signal.SIGKILL)
  process.communicate()
  killed = time.monotonic()
  first = killed - began
  time.sleep(1.0)  # no time of the run
  began = time.monotonic()
  process = life(workdir)
  told = process.communicate(timeout=240)[0]
  assert process.returncode == 0, told
  second = time.monotonic() - began
  assert f"going on from step {saved}" in told

  found = json.loads((workdir / "run.json").read_text())["goodput"]
  assert sum(found["shares"].values()) == pytest.approx(1.0)
  result = json.loads((workdir / "result.json").read_text())
  assert found["wall_seconds"] - result["wall_seconds"] < 0.5  # what is left of the end
  assert abs(found["wall_seconds"] - first - second) < 0.02 * (first + second) + AT_EXIT
  lost = found["shares"][goodput.LOST] * found["wall_seconds"]
  assert 1.7 - 0.3 < lost < killed - at_checkpoint + 0.3
  page = (workdir / "report.html").read_text()
  assert "Where the time went" in page
  assert "in 2 starts" in page
  row = page.partition("lost to restarts: updates made again</td>")[2].partition("</tr>")[0]
  shown = re.search(r"([\d.]+)%", row)
  assert float(shown[1]) / 100 == pytest.approx(found["shares"][goodput.LOST], rel=0.15)
