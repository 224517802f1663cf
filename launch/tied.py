"""Runs a command that dies with the process which started it: `python tied.py PARENT COMMAND …`, on Linux.

The kernel is told to send SIGKILL when PARENT ends, however it ends, and keeps that across exec. It stands in a file of
its own, and imports nothing of ours, because it is run before the command in each process.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

parent, command = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != parent:  # it ended before the kernel was told
  sys.exit(1)
try:
  os.execvp(command[0], command)
except OSError as error:
  print(f"launch: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
  sys.exit(127)
