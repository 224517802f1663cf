"""abort() in a thread of C's own asks Python first, and still ends the process where nobody has ended it otherwise.

Switched off once: without `libc.signal` in `before_abort` the first ends with SIGABRT.
"""

import signal
import subprocess
import sys

import pytest

ABORTING = """
import ctypes, os, threading, time
from research.parallel.aborts import before_abort

def act():
  print("asked", flush=True)
  time.sleep(0.2)  # others run meanwhile
  {act}

before_abort(act)
threading.Thread(target=ctypes.CDLL(None).abort).start()  # ctypes lets go of Python meanwhile, as jaxlib's threads
time.sleep(60)
"""


@pytest.mark.parametrize(("act", "code"), [("os._exit(77)", 77), ("pass", -signal.SIGABRT), ("1 / 0", -signal.SIGABRT)])
def test_abort_asks_first(act, code):
  done = subprocess.run(
    [sys.executable, "-c", ABORTING.replace("{act}", act)], capture_output=True, text=True, timeout=30, check=False
  )
  assert (done.returncode, done.stdout) == (code, "asked\n"), done.stderr
