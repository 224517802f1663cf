"""Several real processes of one command on this machine, with eight devices between them, as a launcher starts them."""

import os
import re
import socket
import subprocess
import sys

DEVICES = 8
SECONDS = 150  # most for a start; a process that hangs is killed and the test fails


def environment(index, count, port):
  """What process `index` of `count` is started with."""
  devices = DEVICES // count
  flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
  who = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
  return {**os.environ, "XLA_FLAGS": flags, "NPROC": str(4 * devices), **who}


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def begin(count, command, own=lambda index: [], extra=lambda index, port: {}, before=lambda index: []):
  """The processes of `BEFORE(index) python COMMAND OWN(index)`, just started; EXTRA(index, port): more environment."""
  port = free_port()
  return [
    subprocess.Popen(
      [*before(index), sys.executable, *command, *own(index)],
      env={**environment(index, count, port), **extra(index, port)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def end(processes, seconds=SECONDS):
  """Their (exit code, stdout, stderr), once they have ended by themselves."""
  hanging = False
  try:
    for process in processes:
      process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    hanging = True
  finally:
    for process in processes:
      process.kill()
    ended = [(process, *process.communicate()) for process in processes]
  told = [(process.returncode, *output) for process, *output in ended]
  assert not hanging, told
  return told


def run(count, command, own=lambda index: [], seconds=SECONDS):
  return end(begin(count, command, own), seconds)
