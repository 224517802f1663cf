"""The tiles at the top of the page: a run's numbers, the one that matters most large, in rows that come out even."""

import html
import re
from collections.abc import Iterable

from research.report.measures import BASELINES, best, is_baseline, is_floor, say, say_seconds
from research.report.record import number
from research.report.run_directory import Run

_MOST = 7  # metrics
# Tiles beside the large one → (columns, rows, how many of them take two places, which makes the rows even: the first,
# then the last).
_LAYOUTS = {
  1: (1, 1, 0), 2: (2, 1, 0), 3: (3, 1, 0), 4: (4, 1, 0), 5: (3, 2, 1), 6: (3, 2, 0), 7: (4, 2, 1), 8: (4, 2, 0),
  9: (3, 3, 0), 10: (4, 3, 2), 11: (4, 3, 1),
}  # fmt: skip


def section(run: Run) -> str:
  """HTML: metrics, steps, wall time and parameters."""
  measured = list(_metrics(run).items())[:_MOST]
  tiles = [(name, say(name, value), _beside(run, name, value)) for name, value in measured]
  tiles += [("steps", f"{run.step:,}", []), ("wall time", say_seconds(run.wall_seconds), [])]
  parameters = run.environment.get("parameters", run.environment.get("parameter_count"))
  if isinstance(parameters, int):
    tiles.append(("parameters", f"{parameters:,}", []))
  return arranged(tiles, main=bool(measured))


def arranged(tiles: list[tuple[str, str, list[str]]], main: bool) -> str:
  """(name, value, what stands below) each; if `main`, the first one is the large one.

  The style's variables tell how many places a row has, with and without the large tile beside it.
  """
  others = len(tiles) - main
  columns, rows, wide = _LAYOUTS[others] if main else (others, 1, 0)
  kinds = ["tile main"] * main + ["tile"] * others
  for place in (main, -1)[:wide]:
    kinds[place] += " wide"
  if others % 2:  # in a narrow window two stand side by side
    kinds[main] += " odd"
  parts = [_tile(*tile, kind) for tile, kind in zip(tiles, kinds, strict=True)]
  few = " few" if rows == 1 else ""
  style = f"--columns:{columns};--all:{columns + 2 * main};--rows:{rows}"
  return f'<section class="tiles{few}" style="{style}">{"".join(parts)}</section>'


def _metrics(run: Run) -> dict[str, float]:
  """The run's own scores: what was told last, else the last evaluation, else the loss of training."""
  found = {name: number(value) for name, value in run.result.get("metrics", {}).items()}
  if not found:
    found = {name: value for name, value in run.final.items() if not name.startswith("train/")}
  if not found:
    found = {name: value for name, value in run.final.items() if name == "train/loss"}
  return {name: value for name, value in found.items() if not is_floor(name) and not is_baseline(name)}


def _beside(run: Run, name: str, value: float) -> list[str]:
  return [line for line in (_best_of(run, name, value), _floor_of(run, name), *_baselines_of(run, name)) if line]


def _best_of(run: Run, name: str, value: float) -> str:
  """Nothing where the last evaluation is the best and the tile shows it."""
  found = best(name, *run.curves[name]) if name in run.curves else None
  if not found or (found[0] == run.curves[name][0][-1] and say(name, found[1]) == say(name, value)):
    return ""
  return f"best {say(name, found[1])} · step {found[0]:,}"


def _floor_of(run: Run, name: str) -> str:
  floor = f"floor/{name.partition('/')[2]}"
  return f"real data {say(floor, run.final[floor])}" if floor in run.final else ""


def _baselines_of(run: Run, name: str) -> list[str]:
  split, _, measure = name.partition("/")
  names = {label: f"{split}/{prefix}_{measure}" for prefix, label in BASELINES.items()}
  return [f"{label} {say(other, run.final[other])}" for label, other in names.items() if other in run.final]


def _tile(name: str, value: str, more: Iterable[str], kind: str) -> str:
  lines = "<br>".join(map(html.escape, more))
  return (f'<div class="{kind}"><div class="name">{html.escape(re.sub("[/_]", " ", name))}</div>'
          f'<div class="value">{html.escape(value)}</div><div class="more">{lines}</div></div>')
