"""One training update of seven models: Flagship, plain flax and PyTorch, in float32 and bfloat16, turn by turn.

  python -m benchmarks.updates                       all rows; needs the extra `bench`, for PyTorch
  python -m benchmarks.updates gpt vit --rounds=40   some rows
  python -m benchmarks.updates gpt --kernels=dense=xla --kernels=norm=xla,dense=xla    what kernels give
  python -m benchmarks.updates --write               puts the table into README.md

Each side is a process of its own that makes updates for about half a second when it is told to, one side at a time, so
they share the machine but not its threads. Ratios are of the same round. All sides of a row begin with the same weights
and the same batch, so their first losses must agree (a GAN's do not: its noise is drawn). PyTorch is eager, with the
memory layout that it has unless told otherwise, and, where there are images, also with channels last.
"""

import argparse
import importlib
import os
import re
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.updates import turns
from research.kernels import choice

ROWS = ("mlp", "cnn", "resnet", "gan", "gpt", "vit", "text")
WITH = "Flagship with "
README = Path(__file__).parents[2] / "README.md"
HEADER = """\
| update of | side | first loss | ms, median | speed ÷ PyTorch's, median (quartiles) | n |
| --- | --- | --- | --- | --- | --- |"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seconds", type=float, default=0.5, help="of a turn, roughly")
  parser.add_argument("--sides", default="", help="names with ; between them; none: all")
  parser.add_argument(
    "--kernels", action="append", default=[], help="another side: Flagship in float32 with --kernels as said"
  )
  parser.add_argument("--write", action="store_true", help="put the table into README.md")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    name, _, side = arguments.serve.partition("/")
    with choice.configured(side.removeprefix(WITH) if side.startswith(WITH) else ""):
      turns.serve(row(name).sides["Flagship" if side.startswith(WITH) else side]())
    return
  if unknown := set(arguments.rows) - set(ROWS):
    parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
  versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
  lines = [f"{os.cpu_count()} cores of {processor()}, Python {sys.version.split()[0]}, {versions}", "", HEADER]
  print("\n".join(lines), flush=True)
  for name in arguments.rows or ROWS:
    sides = [side.strip() for side in arguments.sides.split(";") if side.strip()] or [*row(name).sides]
    sides += [WITH + said for said in arguments.kernels]
    measured = turns.measure(name, sides, arguments.rounds, arguments.seconds, "benchmarks.updates")
    found = told(name, row(name), measured)
    print("\n".join(found), flush=True)
    lines += found
  if arguments.write:
    marks = r"(<!-- benchmarks.updates -->\n).*?(<!-- end -->)"
    text, count = re.subn(
      marks, lambda found: found[1] + "\n".join(lines) + "\n" + found[2], README.read_text(), flags=re.DOTALL
    )
    if count != 1:
      sys.exit(f"{README} has {count} places for the table; it wants one, between {marks}")
    README.write_text(text)


def row(name: str) -> turns.Row:
  """A module of this folder."""
  return importlib.import_module(f"benchmarks.updates.{name}").ROW


def told(name: str, row: turns.Row, measured: dict[str, turns.Measured]) -> list[str]:
  """The table's lines of a row; a side in bfloat16 is compared with PyTorch's in bfloat16 too."""
  lines = []
  for side, found in measured.items():
    ratios = []
    for peer in ("PyTorch", "PyTorch, channels last", "PyTorch, bfloat16"):
      narrow = "bfloat16" in peer
      if peer in measured and side != peer and (narrow <= ("bfloat16" in side)):
        low, median, high = turns.ratio(measured, side, peer)
        what = {"PyTorch": "", "PyTorch, bfloat16": "; ÷ its bfloat16's "}.get(peer, "; ÷ channels last's ")
        ratios.append(f"{what}{median:.2f} ({low:.2f} – {high:.2f})")
    first = "" if found.first is None else f"{found.first:.5f}"
    milliseconds = f"{1000 * statistics.median(found.seconds):.3g}"
    what = f"`{name}`: {row.what}" if not lines else ""
    lines.append(f"| {what} | {side} | {first} | {milliseconds} | {''.join(ratios) or 1} | {len(found.seconds)} |")
  return lines


def processor() -> str:
  """The processor's name, where Linux tells it."""
  try:
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
  except (OSError, TypeError):
    return "an unnamed processor"


if __name__ == "__main__":
  main()
