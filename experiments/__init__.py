"""An experiment is a folder here, a command, and some flag files."""

import contextlib
import os
import signal
import sys

STOPPED = 75  # run the same command again


def _stop(number, frame) -> None:
  """Ends the process at once: nothing is begun that would have to be put away, and an exception would be raised in
  whatever is imported or ended just then."""
  del number, frame
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
    os.write(2, b"stopped\n")
  os._exit(STOPPED)


if sys.argv[:1] == ["-m"]:  # python -m experiments.…, whose imports take seconds; a run has handlers of its own later
  for _number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) != signal.SIG_IGN:  # as a shell has it for what runs in the background
      signal.signal(_number, _stop)
