"""The sweep in pictures: curves.png, the metric of each trial; flags.png, each swept flag against it; for two flags
also heatmap.png.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launch.sweep import grammar
from launch.sweep.table import Row, as_number
from research import selection
from research.report import pictures
from research.report.measures import is_share, say

_GREY, _INK, _ACCENT = "#9aa1ab", "#1c1f24", "#0072b2"
_DECADES = 300  # greatest over least of an axis from which only powers of ten are written
_WIDE = 10  # greatest over least value of a flag from which its axis is logarithmic
_WRITTEN = 6  # values of a flag that are written on its axis as they were typed
_CELLS = 12  # a side, of a heat map with numbers in it


def write(folder: Path, rows: Sequence[Row], space: Sequence[grammar.Swept], metric: str) -> list[Path]:
  """Draws what there are numbers for; returns the pictures' paths. Raises ImportError without matplotlib."""
  shown = [row for row in rows if row["value"] is not None]
  if not shown:
    return []
  drawn = [
    pictures.write(folder / "curves.png", lambda: curves_figure(shown, metric)),
    pictures.write(folder / "flags.png", lambda: flags_figure(shown, space, metric)),
  ]
  if len(space) == 2:
    drawn.append(pictures.write(folder / "heatmap.png", lambda: heat_figure(shown, space, metric)))
  return drawn


def curves_figure(rows: Sequence[Row], metric: str):
  """The metric over steps, dark for the best; a pruned trial ends in a cross, a ring is at each best value."""
  from matplotlib.colors import Normalize

  figure = pictures.new_figure(8.4, 4.6)
  axes = figure.add_subplot()
  few = len(rows) <= len(pictures.COLOURS)
  colours = _by_rank(len(rows))
  for place in reversed(range(len(rows))):
    row = rows[place]
    steps, values = zip(*row["curve"], strict=True)
    label = row["name"] if few else None
    axes.plot(steps, values, color=colours[place], linewidth=2.2 if not place else 1.1, label=label,
              marker="." if len(steps) < 4 else None)  # fmt: skip
    end, mark = ((steps[-1], values[-1]), "x") if row["state"] == "pruned" else ((row["best_step"], row["value"]), "o")
    axes.plot(*end, mark, markerfacecolor="none", color=colours[place], markersize=7, markeredgewidth=1.6)
  pictures.finish_axes(axes, metric, False)
  _metric_axis(axes.yaxis, [value for row in rows for _, value in row["curve"]], metric)
  if few:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize=8)
  else:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(Normalize(1, len(rows)), _colour_map()), ax=axes, label="rank")
    bar.ax.invert_yaxis()
  return figure


def _colour_map():
  """From dark to light, without the yellow that nobody sees on white."""
  import matplotlib as mpl

  return mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.88, 256)))


def _by_rank(count: int) -> list:
  return [_colour_map()(place / max(count - 1, 1)) for place in range(count)]


def flags_figure(rows: Sequence[Row], space: Sequence[grammar.Swept], metric: str):
  """A panel for each flag: every trial's best value over the flag's, empty where it was not run to its end. A line
  joins the best of each of a flag's values."""
  columns = min(3, len(space))
  lines = -(-len(space) // columns)
  figure = pictures.new_figure(max(4.8, 3.9 * columns), 3.6 * lines)
  for place, swept in enumerate(space):
    axes = figure.add_subplot(lines, columns, place + 1)
    ticks = _Ticks(swept, rows)
    where = [ticks.place(row) for row in rows]
    best = {}
    for x, row in zip(where, rows, strict=True):
      if row["state"] == "done" and isinstance(swept, grammar.Values):
        best.setdefault(x, row["value"])  # rows are sorted, the best first
    if len(best) > 1 and ticks.numeric:
      axes.plot(*zip(*sorted(best.items()), strict=True), "-", color=_GREY, linewidth=1)
    for x, row in zip(where, rows, strict=True):
      done = row["state"] == "done"
      axes.plot(x, row["value"], "o", markersize=6, markeredgecolor=_ACCENT, alpha=0.9,
                markerfacecolor=_ACCENT if done else "none")  # fmt: skip
    axes.plot(where[0], rows[0]["value"], "o", color="#d55e00", markersize=9)
    ticks.draw(axes.xaxis)
    _metric_axis(axes.yaxis, [row["value"] for row in rows], metric)
    axes.set(xlabel=f"--{swept.flag}")
    if place % columns == 0:
      axes.set_ylabel(f"best {metric}")
  return figure


def heat_figure(rows: Sequence[Row], space: Sequence[grammar.Swept], metric: str):
  """Two flags: the best value in each cell of a grid, or a dot for each trial where values are drawn."""
  ys, xs = (_Ticks(swept, rows) for swept in space)
  figure = pictures.new_figure(6.4, 4.8)
  axes = figure.add_subplot()
  colours = "viridis_r" if selection.lower_is_better(metric) else "viridis"
  if any(isinstance(swept, grammar.Range) for swept in space):
    where = [(xs.place(row), ys.place(row)) for row in rows]
    drawn = axes.scatter(*zip(*where, strict=True), c=[row["value"] for row in rows], cmap=colours, s=64,
                         edgecolors=["white" if row["state"] == "done" else "#d55e00" for row in rows])  # fmt: skip
    xs.draw(axes.xaxis)
    ys.draw(axes.yaxis)
  else:
    cells = np.full((len(ys.words), len(xs.words)), np.nan)
    pruned = set()
    for row in reversed(rows):  # the best last
      cell = ys.index(row), xs.index(row)
      cells[cell] = row["value"]
      (pruned.discard if row["state"] == "done" else pruned.add)(cell)
    drawn = axes.imshow(cells, cmap=colours, aspect="auto", origin="lower")
    axes.grid(False)
    axes.set_xticks(range(len(xs.words)), xs.words)
    axes.set_yticks(range(len(ys.words)), ys.words)
    if max(cells.shape) <= _CELLS:
      _numbers(axes, cells, pruned, drawn, metric)
  bar = figure.colorbar(drawn, ax=axes, label=f"best {metric}")
  _metric_axis(bar.ax.yaxis, [], metric)
  axes.set(xlabel=f"--{xs.flag}", ylabel=f"--{ys.flag}")
  return figure


def _numbers(axes, cells: np.ndarray, pruned: set, drawn, metric: str) -> None:
  for (y, x), value in np.ndenumerate(cells):
    if math.isfinite(value):
      words = say(metric, value) + ("\n(not to its end)" if (y, x) in pruned else "")
      red, green, blue, _ = drawn.cmap(drawn.norm(value))
      dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.55
      axes.text(x, y, words, ha="center", va="center", fontsize=8, color="white" if dark else _INK)


class _Ticks:
  """Where a flag's values lie on an axis: numbers by their size, words side by side."""

  def __init__(self, swept: grammar.Swept, rows: Sequence[Row]):
    self.flag = swept.flag
    numbers = {row["flags"][swept.flag]: as_number(row["flags"][swept.flag]) for row in rows}
    self.numeric = None not in numbers.values() and (len(numbers) > 1 or isinstance(swept, grammar.Range))
    self.words = sorted(numbers, key=numbers.get) if self.numeric else sorted(numbers)
    ordered = [numbers[word] for word in self.words]
    wide = self.numeric and ordered[0] > 0 and ordered[-1] / ordered[0] >= _WIDE
    self.logarithmic = swept.logarithmic if isinstance(swept, grammar.Range) else wide

  def index(self, row: Row) -> int:
    return self.words.index(row["flags"][self.flag])

  def place(self, row: Row) -> float:
    return float(row["flags"][self.flag]) if self.numeric else self.index(row)

  def draw(self, axis) -> None:
    axes, letter = axis.axes, axis.axis_name
    if not self.numeric:
      axis.set_ticks(range(len(self.words)), self.words)
      getattr(axes, f"set_{letter}lim")(-0.5, len(self.words) - 0.5)
    elif self.logarithmic:
      _logarithmic(axis, lambda value, _place: f"{value:g}")
    if self.numeric and len(self.words) <= _WRITTEN:
      axis.set_ticks([float(word) for word in self.words], [f"{float(word):.4g}" for word in self.words])
      axis.set_ticks([], minor=True)


def _metric_axis(axis, values: Sequence[float], metric: str) -> None:
  """Logarithmic where the values ask for it, and its numbers as the metric is said."""
  finite = [value for value in values if math.isfinite(value)]
  say_tick = lambda value, _place: pictures.tick(metric, value)  # noqa: E731
  if finite and not is_share(metric) and min(finite) > 0 and max(finite) / min(finite) >= _WIDE / 2:
    _logarithmic(axis, say_tick)
  else:
    axis.set_major_formatter(say_tick)


def _logarithmic(axis, say_tick) -> None:
  from matplotlib.ticker import LogLocator

  getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
  low, high = axis.get_view_interval()
  axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > _DECADES else (1.0, 2.0, 5.0)))
  axis.set_major_formatter(say_tick)
  axis.set_minor_formatter(lambda _value, _place: "")
