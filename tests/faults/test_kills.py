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


@pytest.mark.parametrize("family", NAMES)
def test_a_killed_run_is_the_untouched_one(family):
  command = [sys.executable, "-m", "tests.faults.campaign", f"--families={family}", "--kills=3", "--seed=1", "--json"]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=400, check=False, cwd=Path(__file__).resolve().parents[2]
  )
  assert done.returncode == 0, done.stderr[-4000:]
  outcome = json.loads(done.stdout.splitlines()[-1])[family]
  assert outcome["kills"] == outcome["survived"] == 3
  assert not outcome["lost"]
