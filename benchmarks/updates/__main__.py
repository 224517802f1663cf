"""One training update of seven models: Flagship, plain flax and PyTorch, in float32 and bfloat16, turn by turn.

  python -m benchmarks.updates                       all rows; needs the extra `bench`, for PyTorch
  python -m benchmarks.updates gpt vit --rounds=40   some rows
  python -m benchmarks.updates gpt --kernels=dense=xla --kernels=norm=xla,dense=xla    what kernels give
  python -m benchmarks.updates --write               puts the table into README.md

Each side is a process of its own that makes updates for about half a second when it is told to, one side at a time, so
they share the machine but not its threads. What is told is each side's speed ÷ PyTorch's in float32, of the same round:
the median and the quartiles. All sides of a row begin with the same weights and the same batch, and where their first
losses do not agree that is an error (but for the GAN's: its noise is drawn). PyTorch is eager, with the memory layout
that it has unless told otherwise, and, where there are images, also with channels last.
"""

import argparse
import importlib
import math
import os
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks import tables
from benchmarks.updates import turns
from research.kernels import choice

ROWS = ("mlp", "cnn", "resnet", "gan", "gpt", "vit", "text")
WITH, PEER = "Flagship with ", "PyTorch"
README = Path(__file__).parents[2] / "README.md"
COLUMNS = ("flax", "Flagship", "Flagship, bfloat16", "PyTorch, bfloat16", "PyTorch, channels last")


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
  wanted = [side.strip() for side in arguments.sides.split(";") if side.strip()]
  columns = [side for side in COLUMNS if not wanted or side in wanted] + [WITH + said for said in arguments.kernels]
  versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
  lines = [
    f"{os.cpu_count()} cores of {tables.processor()}, Python {sys.version.split()[0]}, {versions}.", "",
    f"| update of | first loss | {PEER}, ms | {' | '.join(columns)} | n |", f"|{' --- |' * (len(columns) + 4)}"
  ]  # fmt: skip
  print("\n".join(lines), flush=True)
  for name in arguments.rows or ROWS:
    sides = [PEER, *(side for side in columns if side.startswith(WITH) or side in row(name).sides)]
    measured = turns.measure(name, sides, arguments.rounds, arguments.seconds, "benchmarks.updates")
    lines.append(told(name, row(name), measured, columns))
    print(lines[-1], flush=True)
  if arguments.write:
    tables.write(README, "benchmarks.updates", lines)


def row(name: str) -> turns.Row:
  """A module of this folder."""
  return importlib.import_module(f"benchmarks.updates.{name}").ROW


def told(name: str, row: turns.Row, measured: dict[str, turns.Measured], columns: list[str]) -> str:
  """The table's line of a row: how fast each side is beside PyTorch in float32.

  Raises ValueError where sides in float32 begin with other losses: they then do not compute the same.
  """
  first = measured[PEER].first
  cells = []
  for side in columns:
    if side not in measured:
      cells.append("")
      continue
    theirs = measured[side].first
    if first is not None and "bfloat16" not in side and not math.isclose(theirs, first, rel_tol=1e-4):
      raise ValueError(f"{name}: {side} begins with a loss of {theirs}, {PEER} with {first}")
    low, median, high = turns.ratio(measured, side, PEER)
    cells.append(f"{f'**{median:.2f}**' if side == 'Flagship' else f'{median:.2f}'} ({low:.2f} – {high:.2f})")
  spent, rounds = 1000 * statistics.median(measured[PEER].seconds), len(measured[PEER].seconds)
  loss = "drawn" if first is None else f"{first:.5f}"
  return f"| `{name}`: {row.what} | {loss} | {spent:.3g} | {' | '.join(cells)} | {rounds} |"


if __name__ == "__main__":
  main()
