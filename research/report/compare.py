"""Several runs side by side: their numbers, the flags in which they differ, and their curves on shared axes.

It judges nothing: runs of different data or length are shown as they are, and the best value of a row is only marked.
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from research import selection
from research.errors import UserError
from research.report.measures import best, is_plain, say, say_seconds, split_order
from research.report.panels import FLOOR, panels
from research.report.run_directory import Run
from research.report.samples import title

_MOST_COLUMNS = 6  # runs; more of them become the rows
_MOST_PANELS = 6
_UNTOLD_FLAGS = ("workdir",)  # it always differs and means nothing
_TITLE = "runs compared by research.report"  # in the picture's header: what may be written over
_DASHES = {"train": ":", "validation": "-", "test": "--", FLOOR: (0, (4, 3))}

Facts = dict[str, list[str]]  # what is told → its text for each run


def labels(runs: Sequence[Run]) -> list[str]:
  """The runs' names, or their paths where two runs share a name."""
  names = [run.name for run in runs]
  return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def results(runs: Sequence[Run]) -> tuple[Facts, dict[str, int]]:
  """Steps, wall time, and the last and best value of every metric; and for each row of metrics the best run's place."""
  facts: Facts = {
    "step": [f"{run.step:,}" if run.result else f"{run.step:,} (unfinished)" for run in runs],
    "wall time": [say_seconds(run.wall_seconds) for run in runs],
  }
  leaders: dict[str, int] = {}
  names = dict.fromkeys(name for run in runs for name in run.final)
  for name in sorted(names, key=split_order):
    if name.startswith("train/") and not name.endswith("loss"):
      continue
    finals = [run.final.get(name, math.nan) for run in runs]
    facts[name] = [say(name, run.final[name]) if name in run.final else "" for run in runs]
    if is_plain(name):
      continue
    _mark(leaders, name, name, finals)
    bests = [best(name, *run.curves.get(name, ([], []))) for run in runs]
    if any(bests):
      row = f"best {name}"
      facts[row] = [f"{say(name, found[1])} at {found[0]:,}" if found else "" for found in bests]
      _mark(leaders, row, name, [found[1] if found else math.nan for found in bests])
  return facts, leaders


def _mark(leaders: dict[str, int], row: str, metric: str, values: Sequence[float]) -> None:
  found = selection.best(metric, list(enumerate(values)))
  if found and len(set(values)) > 1:
    leaders[row] = found[0]


def differing_flags(runs: Sequence[Run]) -> Facts:
  """The flags whose values are not the same in all runs, "-" where a run has no such flag."""
  names = dict.fromkeys(name for run in runs for name in run.flags if name not in _UNTOLD_FLAGS)
  values = {f"--{name}": [run.flags.get(name) for run in runs] for name in names}
  return {
    name: ["-" if value is None else value or '""' for value in row]
    for name, row in values.items() if len(set(row)) > 1
  }  # fmt: skip


def print_comparison(runs: Sequence[Run]) -> None:
  """The two tables, on standard output; uncut where that is not a terminal."""
  from rich.console import Console

  width = None if sys.stdout.isatty() else max(200, shutil.get_terminal_size().columns)
  console = Console(highlight=False, width=width)
  names = labels(runs)
  facts, leaders = results(runs)
  console.print(_table(facts, names, leaders))
  flags = differing_flags(runs)
  console.print(_table(flags, names, {}) if flags else "No flag differs.")


def _table(facts: Facts, names: Sequence[str], leaders: Mapping[str, int]):
  """Runs are the columns, or the rows if there are many."""
  from rich import box
  from rich.table import Table
  from rich.text import Text

  cells = [
    [Text(text, "bold green" if leaders.get(fact) == place else "") for place, text in enumerate(row)]
    for fact, row in facts.items()
  ]
  across, down = list(names), list(facts)
  if len(names) > _MOST_COLUMNS:
    across, down, cells = down, across, [list(column) for column in zip(*cells, strict=True)]
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("", overflow="fold")
  for name in across:
    table.add_column(Text(name), justify="right", overflow="fold")
  for name, row in zip(down, cells, strict=True):
    table.add_row(Text(name), *row)
  return table


def check_out(out: Path) -> None:
  """Raises UserError where `out` is no PNG file's name, or is there and was not written by `write_curves`."""
  if out.suffix.lower() != ".png":
    raise UserError(f"report: --out={out} must end in .png")
  if (out.exists() or out.is_symlink()) and title(out) != _TITLE:
    raise UserError(f"report: {out} is a file that this command did not write; name another with --out=FILE.png")


def write_curves(runs: Sequence[Run], out: Path) -> Path:
  """Overlays the runs' curves, one colour a run and one dash a split, as a PNG file.

  Raises ImportError without matplotlib, UserError if `out` cannot be written or is another's (`check_out`).
  """
  from research.report import pictures

  check_out(out)
  return pictures.write(out, lambda: _figure(runs, pictures), _TITLE)


def _figure(runs: Sequence[Run], pictures):
  from matplotlib.lines import Line2D

  shown: dict[str, list] = {}  # measure → (run's place, panel)
  for place, run in enumerate(runs):
    for panel in panels(run.curves):
      if panel.main:
        shown.setdefault(panel.name, []).append((place, panel))
  shown = dict(list(shown.items())[:_MOST_PANELS])
  columns = max(1, min(2, len(shown)))
  rows = max(1, -(-len(shown) // columns))
  figure = pictures.new_figure(5.4 * columns, 3.4 * rows + 0.25 * len(runs) + 0.4)
  colours = pictures.run_colours(len(runs))
  splits = {}
  for index, (name, entries) in enumerate(shown.items()):
    axes = figure.add_subplot(rows, columns, index + 1)
    for place, panel in entries:
      for line in panel.lines:
        splits[line.name] = None
        pictures.draw_line(axes, line, colours[place], _DASHES.get(line.name, "-."))
    pictures.finish_axes(axes, name, all(panel.logarithmic for _, panel in entries))
  handles = [Line2D([], [], color=colour, label=name) for colour, name in zip(colours, labels(runs), strict=True)]
  handles += [Line2D([], [], color="#5f6670", linestyle=_DASHES.get(name, "-."), label=name) for name in splits]
  figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
  return figure
