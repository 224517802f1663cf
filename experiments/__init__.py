"""An experiment is a folder here, a command, and some flag files."""

import signal
import sys

STOPPED = 75  # run the same command again


def _stop(number, frame) -> None:
  del number, frame
  print("stopped", file=sys.stderr, flush=True)
  raise SystemExit(STOPPED)


if sys.argv[:1] == ["-m"]:  # python -m experiments.…, whose imports take seconds; a run has handlers of its own later
  for _number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) != signal.SIG_IGN:  # as a shell has it for what runs in the background
      signal.signal(_number, _stop)
