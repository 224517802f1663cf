"""Nothing that is opened can run code: files that mean harm are read as what they say, or refused in a line.

Switched off once: with `allow_pickle=True` in data/npz.py, and without the look at the header before it,
"data/objects.npz" is HEARD.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import evil

OPENING = str(Path(__file__).with_name("opening.py"))
READ = {  # beside the good ones: nothing in them is harmful to who does not look for it
  "checkpoint/pickle beside", "checkpoint/handler of its own", "hf/code of its own", "run/picture outside",
  "run/deep account", "run/deep lines", "run/pickle for lines",  # a last line may be cut off by a death
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """{what it is: what became of it}; within 6 GB and two minutes."""
  folder = tmp_path_factory.mktemp("evil")
  evil.make(folder)

  done = subprocess.run(
    [sys.executable, OPENING, str(folder)],
    capture_output=True, text=True, timeout=150, check=False, cwd=folder,
    env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
  )  # fmt: skip
  assert not [line for line in done.stdout.splitlines() if line.startswith("HEARD")], done.stdout
  assert done.returncode == 0, done.stdout + done.stderr
  return dict(line.split("\t") for line in done.stdout.splitlines())


def test_what_is_good_is_read(outcomes):
  good = [name for name in outcomes if "/good" in name]
  assert len(good) == 8
  assert {outcomes[name] for name in good} == {"read"}


def test_a_picture_of_another_place_is_not_shown(tmp_path):
  from research.report import run_directory

  evil.runs(tmp_path)
  assert run_directory.open_run(tmp_path / "picture outside").samples == {}


def test_what_is_evil_is_refused_in_a_line(outcomes):
  evil_ones = {name: outcome for name, outcome in outcomes.items() if "/good" not in name}
  assert len(evil_ones) >= 35
  assert {name for name, outcome in evil_ones.items() if outcome == "read"} == READ
