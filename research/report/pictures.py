"""pictures/: the curves, the confusion matrix, the worst mistakes and the predictions of a run as PNG files.

For slides and papers; the page draws its own. It uses matplotlib's figures without pyplot, so it touches no global
state of a notebook or a thread, and it never reads text as formulas: class names may hold dollar signs.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from research import throughput
from research.report import forecasts, tables
from research.report.atomic import cannot_write, write_atomically
from research.report.measures import is_share, say_number, with_minus
from research.report.panels import FLOOR, Line, Panel, panels
from research.report.run_directory import Run

# Okabe and Ito's colours, grey for training; the page uses the same.
SPLIT_COLOURS = {"train": "#8a929c", "validation": "#0072b2", "test": "#d55e00", FLOOR: "#8a929c"}
FORECAST_COLOURS = {"truth": "#8a929c", "forecast": "#0072b2", "seasonal naive": "#009e73", "naive": "#b8860b"}
FLOOR_DASHES = (0, (4, 3))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#000000", "#8a929c")
_STYLE = {
  "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
  "axes.edgecolor": "#9aa1ab", "axes.labelcolor": "#5f6670", "xtick.color": "#5f6670", "ytick.color": "#5f6670",
  "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e5e1",
  "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
_DOTS_PER_INCH = 160
_ANNOTATED_CLASSES = 12
_MATRIX_CLASSES = 50
_SCATTER_POINTS = 5000


def write_all(run: Run, folder: Path) -> list[Path]:
  """Draws what the run's files allow and returns the pictures' paths.

  Raises ImportError where matplotlib is missing, UserError where `folder` cannot be written.
  """
  wanted: dict[str, Callable] = {}
  shown = [panel for panel in panels(run.curves) if not throughput.is_one(panel.name)]
  if shown:
    wanted["curves.png"] = lambda: curves_figure(shown)
  found = run.predictions or {}
  if "label" in found:
    names = found["class_names"].tolist()
    if len(names) <= _MATRIX_CLASSES:
      counts = tables.confusion_matrix(found["label"], found["prediction"], len(names))
      wanted["confusion.png"] = lambda: confusion_figure(counts, names)
    if len(found.get("worst_images", ())):
      wanted["mistakes.png"] = lambda: mistakes_figure(found)
  elif "truth" in found:
    wanted["forecasts.png"] = lambda: forecasts_figure(found)
  elif "target" in found:
    wanted["predictions.png"] = lambda: scatter_figure(found["target"], found["prediction"])
  return [write(folder / name, draw) for name, draw in wanted.items()]


def write(path: Path, draw: Callable, title: str = "") -> Path:
  """Draws a figure in this module's style and writes it as a PNG file, its title in its header."""
  import matplotlib as mpl

  with mpl.rc_context(_STYLE), warnings.catch_warnings():
    # A class name in a script that the font lacks is drawn as boxes; that is worth no warning in the training log.
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
    buffer = io.BytesIO()
    words = {"Title": title} if title else None
    draw().savefig(buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata=words)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cannot_write(path, error) from error
  write_atomically(path, buffer.getvalue())
  return path


def run_colours(count: int) -> list[str]:
  """A colour for each of `count` runs; beyond eight they are shades of one scale, in the runs' order."""
  if count <= len(COLOURS):
    return list(COLOURS[:count])
  import matplotlib as mpl

  return [mpl.colors.to_hex(mpl.colormaps["viridis"](0.95 * place / (count - 1))) for place in range(count)]


def new_figure(width: float, height: float):
  """An empty figure of `width` by `height` inches that belongs to no window."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def curves_figure(shown: Sequence[Panel]):
  """A small plot per measure, two in a row."""
  columns = min(2, len(shown))
  rows = -(-len(shown) // columns)
  figure = new_figure(5.2 * columns, 3.1 * rows)
  for place, panel in enumerate(shown):
    axes = figure.add_subplot(rows, columns, place + 1)
    for order, line in enumerate(panel.lines):
      usual = FORECAST_COLOURS.get(line.name.partition(" (")[0], COLOURS[(order + 2) % len(COLOURS)])
      draw_line(axes, line, SPLIT_COLOURS.get(line.name, usual))
    finish_axes(axes, panel.name, panel.logarithmic)
    axes.legend(fontsize=9)
  return figure


def draw_line(axes, line: Line, colour: str, style: str = "-") -> None:
  """A curve, faint under its running mean where it has one, and a ring at the best held-out value.

  A floor is dashed across the whole plot, whatever the `style`.
  """
  if line.flat:
    axes.axhline(line.values[0], color=colour, linestyle=FLOOR_DASHES, linewidth=1.4, label=line.name)
    return
  axes.plot(line.steps, line.values, style, color=colour, linewidth=0.8 if line.smooth else 1.6,
            alpha=0.3 if line.smooth else 1, label=None if line.smooth else line.name)  # fmt: skip
  if line.smooth:
    axes.plot(line.steps, line.smooth, style, color=colour, linewidth=1.6, label=line.name)
  if line.best:
    axes.plot(*line.best, "o", markerfacecolor="none", markeredgecolor=colour, markersize=7)


def finish_axes(axes, measure: str, logarithmic: bool) -> None:
  """Title, scales and ticks of one measure, which must be drawn already."""
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  if logarithmic:
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _place: ""))
  low, high = axes.get_ylim()
  if is_share(measure) and low < 1 and high > 0:
    axes.set_ylim(max(0, low), min(1, high))
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: tick(measure, value)))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: say_number(value)))
  axes.set_title(measure.replace("_", " "))
  axes.set_xlabel("step")


def tick(measure: str, value: float) -> str:
  """A number on the axis of a measure: 90% of an accuracy."""
  return with_minus(f"{100 * value:.6g}%" if is_share(measure) else f"{value:.6g}")


def confusion_figure(counts: np.ndarray, names: Sequence[str]):
  """Rows are true classes and sum to 1; counts are written in the cells of up to 12 classes."""
  size = len(names)
  share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = min(12.0, max(4.5, 0.48 * size + 1.8))
  figure = new_figure(side, side * 0.94)
  axes = figure.add_subplot()
  image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
  figure.colorbar(image, shrink=0.75, label="share of the true class")
  axes.set(xticks=range(size), yticks=range(size), xlabel="predicted", ylabel="true")
  short = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
  axes.set_xticklabels(short, rotation=90 if max(map(len, short)) > 2 else 0)
  axes.set_yticklabels(short)
  axes.grid(False)
  if size <= _ANNOTATED_CLASSES:
    for true, said in zip(*np.nonzero(counts), strict=True):
      dark = share[true, said] > 0.55
      axes.text(said, true, f"{counts[true, said]:,}", ha="center", va="center", fontsize=9,
                color="white" if dark else "#1c1f24")  # fmt: skip
  return figure


def mistakes_figure(predictions: Mapping[str, np.ndarray]):
  """The worst mistakes, each under its picture: true → predicted, and how sure the model was."""
  images_MHWC, names = predictions["worst_images"], predictions["class_names"]
  columns = min(6, len(images_MHWC))
  rows = -(-len(images_MHWC) // columns)
  figure = new_figure(1.7 * columns, 2.1 * rows)
  for place, (row, image_HWC) in enumerate(zip(predictions["worst"], images_MHWC, strict=True)):
    axes = figure.add_subplot(rows, columns, place + 1)
    grey = image_HWC.shape[-1] == 1
    axes.imshow(image_HWC[..., 0] if grey else image_HWC, cmap="gray" if grey else None, vmin=0, vmax=255)
    axes.axis("off")
    sure = f"\n{100 * float(predictions['probability'][row]):.1f}%" if "probability" in predictions else ""
    true, said = (str(names[predictions[column][row]])[:16] for column in ("label", "prediction"))
    axes.set_title(f"{true} → {said}{sure}", fontsize=9, fontweight="normal", loc="center")
  return figure


def scatter_figure(target_N: np.ndarray, prediction_N: np.ndarray):
  """Predictions over targets, with the line that exact ones lie on."""
  places = np.unique(np.linspace(0, len(target_N) - 1, min(len(target_N), _SCATTER_POINTS)).astype(int))
  target, prediction = target_N[places], prediction_N[places]
  figure = new_figure(5, 4.6)
  axes = figure.add_subplot()
  axes.plot(target, prediction, "o", color=COLOURS[0], alpha=0.5, markersize=4, markeredgewidth=0)
  ends = [value for value in (*target.tolist(), *prediction.tolist()) if math.isfinite(value)]
  if ends:
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], "--", color="#9aa1ab", linewidth=1)
  axes.set(xlabel="true", ylabel="predicted", title="predictions")
  return figure


def forecasts_figure(predictions: Mapping[str, np.ndarray]):
  """Some forecasts against the truth, and the error by steps ahead, each beside the naive forecasts."""
  shown = [(f"origin {origin:,}", drawn) for origin, drawn in forecasts.windows(predictions)]
  shown.append(("mean absolute error by steps ahead", forecasts.error_by_step(predictions)))
  rows = -(-len(shown) // 2)
  figure = new_figure(10.4, 3.1 * rows)
  for place, (title, drawn) in enumerate(shown):
    axes = figure.add_subplot(rows, 2, place + 1)
    for name, (xs, ys) in drawn.items():
      axes.plot(xs, ys, "o-" if len(xs) == 1 else "-", color=FORECAST_COLOURS[name], linewidth=1.6, label=name)
    axes.set(title=title, xlabel="steps ahead")
  figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
  return figure
