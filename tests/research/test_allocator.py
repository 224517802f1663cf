"""Freed memory stays with the process: what is asked for again comes without the system's zeros."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from research.allocator import keep_freed_memory
if sys.argv[1] == "keep":
  assert keep_freed_memory()
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000)  # 64 MB
before = faults()
for _ in range(4):
  np.ones(8_000_000)
print(faults() - before)
"""


def faults(how: str) -> int:
  return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


def test_pages_are_lent_once():
  pages = 8 * 8_000_000 // 4096
  assert faults("keep") < pages / 10
  assert faults("leave") > 10 * faults("keep")
