"""A process that waits in vain says for whom, and ends."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from tests import started

WORKER = """
import sys
from research.errors import UserError
from research.parallel import processes

processes.JOIN_SECONDS = 1
try:
  processes.join()
except UserError as error:
  sys.exit(f"{error}")
"""


def ended(index, port):
  """(exit code, standard error) of process `index` of two, alone."""
  environment = started.environment(index, 2, port)
  done = subprocess.run(
    [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, timeout=60, check=False
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize(
  ("index", "complaint"),
  [
    (1, "process 1 waited 1 s, and process 0 was not to be reached"),
    pytest.param(0, "process 0 waited 1 s, and not all 2 processes had come", marks=pytest.mark.slow),
  ],
)
def test_who_is_missing_is_told(index, complaint):
  code, err = ended(index, started.free_port())
  assert code == 2, err
  assert complaint in err
  assert err.strip().count("\n") == 0, err


def test_a_port_that_is_taken_is_told():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    code, err = ended(0, port)
  assert code == 1  # sys.exit's of a text; a command makes it 2
  assert f"cannot listen at 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}; give another port" in err
