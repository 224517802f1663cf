"""`python -m research.report RUN` makes a run's page anew; with several runs it compares them. It trains nothing."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError
from research.report import rebuild
from research.streams import say_what_can_be_said


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 2, after one line, where a run directory is missing or damaged."""
  parser = argparse.ArgumentParser(
    prog="python -m research.report",
    description="With one RUN: draw its pictures/ and report.html anew. With several: a table of their numbers, "
    "the flags that differ, and their curves in one picture.",
  )
  parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run directory, finished or not")
  parser.add_argument("--out", type=Path, default=Path("compare.png"), help="the picture of several runs (%(default)s)")
  options = parser.parse_args(arguments)
  say_what_can_be_said(sys.stdout, sys.stderr)
  try:
    if len(options.runs) == 1:
      print(rebuild(options.runs[0]))
    else:
      _compare(options.runs, options.out)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


def _compare(paths: Sequence[Path], out: Path) -> None:
  from research.report import compare, run_directory

  runs = [run_directory.open_run(path) for path in paths]
  compare.check_out(out)  # before anything is printed: a command that fails does nothing
  compare.print_comparison(runs)
  try:
    print(compare.write_curves(runs, out))
  except ImportError as error:
    print(f"no picture: {error}")


if __name__ == "__main__":
  sys.exit(main())
