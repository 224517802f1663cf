"""An experiment is a folder here, a command, and some flag files."""

import sys


def _interrupted(kind, value, traceback) -> None:
  if issubclass(kind, KeyboardInterrupt):
    print("stopped before it began", file=sys.stderr)
  else:
    sys.__excepthook__(kind, value, traceback)


if sys.argv[:1] == ["-m"]:  # python -m experiments.…, whose imports take seconds: Ctrl-C among them is no crash
  sys.excepthook = _interrupted
