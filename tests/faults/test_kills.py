"""Runs of every family, killed three times each at seeded moments, end as the one that nobody touched.

`make faults` does it thirty times each (docs/studies/faults). Switched off once: where metrics.jsonl is not cut to the
checkpoint (`record.truncate_after`) the lines of a killed run are others, and these fail.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.definitions import NAMES

KILLS = 3


@pytest.fixture(scope="module")
def outcomes():
  """family → what became of its runs: one process for all, which imports what they need once."""
  command = [sys.executable, "-m", "tests.faults.campaign", f"--kills={KILLS}", "--seed=1", "--json"]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=900, check=False, cwd=Path(__file__).resolve().parents[2]
  )
  assert done.stdout, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_every_family_that_there_is_is_killed(outcomes):
  assert sorted(outcomes) == sorted(NAMES)


@pytest.mark.parametrize("family", NAMES)
def test_a_killed_run_is_the_untouched_one(outcomes, family):
  outcome = outcomes[family]
  assert not outcome["lost"]
  assert outcome["kills"] == outcome["survived"] == KILLS
