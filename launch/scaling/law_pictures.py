"""The pictures of a study of compute: IsoFLOP profiles, the frontier, and predictions beside measurements."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launch.scaling.law_report import Found, columns
from launch.scaling.points import Row
from launch.scaling.transfer import shades
from research.report import pictures
from research.scaling_laws import Law

GREY, RED, BLUE = "#8a929c", "#d55e00", "#0072b2"


def write_all(report: Path, rows: Sequence[Row], later: Sequence[Row], found: Found, metric: str) -> None:
  """Args: where they go; the runs that were fitted; the held-out ones; what was found; what losses are called."""
  pictures.write(report / "isoflop.png", lambda: isoflop(rows, found, metric))
  pictures.write(report / "frontier.png", lambda: frontier(rows, later, found, metric))
  pictures.write(report / "predicted.png", lambda: predicted(rows, found, metric))


def isoflop(rows: Sequence[Row], found: Found, metric: str):
  """Loss over size at each budget with its parabola's minimum; beside it the minima over the budget."""
  chart = pictures.new_figure(10.4, 4.4)
  left, right = chart.add_subplot(1, 2, 1), chart.add_subplot(1, 2, 2)
  fit = found["fits"]["parameters"]
  minima = fit["isoflop"]["minima"]
  colours = dict(zip([each["budget"] for each in minima], shades(len(minima)), strict=True))
  for each in minima:
    n, _, loss = columns([row for row in rows if row["budget"] == each["budget"]], "parameters")
    colour = colours[each["budget"]]
    dense = np.geomspace(n.min(), n.max(), 100)
    left.plot(dense, np.polyval(each["coefficients"], np.log(dense)), color=colour, linewidth=1.4)
    left.plot(n, loss, "o", color=colour, markersize=5, label=f"{each['budget']:.3g} FLOPs")
    if each["parameters"]:
      left.plot(each["parameters"], each["loss"], "*", markerfacecolor="none", markeredgecolor=colour, markersize=15,
                markeredgewidth=1.4, zorder=4)  # fmt: skip
  _logarithmic(left.set_xscale, left.xaxis, _parameters)
  left.set(title="each budget's runs and parabola", xlabel="parameters N", ylabel=metric)
  left.legend(fontsize=9)
  good = [each for each in minima if each["parameters"]]
  budgets = np.geomspace(min(row["budget"] for row in rows) / 2, 2 * max(row["budget"] for row in rows), 50)
  law, k = Law(**fit["law"]), fit["FLOPs per parameter and token"]
  right.plot(budgets, law.optimum(budgets, k)[0], color=BLUE, linewidth=1.6,
             label=f"by the law: N ∝ C^{fit['exponents']['a']:.2f}")  # fmt: skip
  if "a" in fit["isoflop"]:
    right.plot(budgets, fit["isoflop"]["coefficient"] * budgets ** fit["isoflop"]["a"], color=GREY,
               linestyle=pictures.FLOOR_DASHES, linewidth=1.4,
               label=f"by the minima: N ∝ C^{fit['isoflop']['a']:.2f}")  # fmt: skip
  for each in good:
    right.plot(each["budget"], each["parameters"], "*", markerfacecolor="none", markeredgecolor=colours[each["budget"]],
               markersize=15, markeredgewidth=1.4, zorder=4)  # fmt: skip
  _logarithmic(right.set_xscale, right.xaxis, _flops)
  _logarithmic(right.set_yscale, right.yaxis, _parameters)
  right.set(title="the size of the least loss", xlabel="model FLOPs C", ylabel="parameters N")
  right.legend(fontsize=9)
  return chart


def frontier(rows: Sequence[Row], later: Sequence[Row], found: Found, metric: str):
  """Loss over compute: every run, the law of each size, the least that the law allows, and the held-out run."""
  chart = pictures.new_figure(7.4, 4.8)
  axes = chart.add_subplot()
  fit = found["fits"]["parameters"]
  law, k = Law(**fit["law"]), fit["FLOPs per parameter and token"]
  sizes = sorted({(row["parameters"], row["width"], row["depth"]) for row in rows})
  for (parameters, width, depth), colour in zip(sizes, shades(len(sizes)), strict=True):
    own = sorted((row["flops"], row["loss"]) for row in rows if (row["width"], row["depth"]) == (width, depth))
    flops, loss = zip(*own, strict=True)
    axes.plot(flops, loss, "o", color=colour, markersize=5, label=f"{width}x{depth}: N = {parameters:,}")
    along = np.geomspace(flops[0], flops[-1], 50)
    tokens = along * np.mean([r["tokens"] / r["flops"] for r in rows if (r["width"], r["depth"]) == (width, depth)])
    axes.plot(along, law.loss(parameters, tokens), color=colour, linewidth=1, alpha=0.6)
  last = max(row["flops"] for row in [*rows, *later])
  budgets = np.geomspace(min(row["flops"] for row in rows), 1.3 * last, 100)
  axes.plot(budgets, law.loss(*law.optimum(budgets, k)), color="#1c1f24", linewidth=1.8,
            linestyle=pictures.FLOOR_DASHES, label="the least by the law")  # fmt: skip
  told = fit.get("held out")
  if told:
    low, high = told["interval"]
    _interval(axes, told["flops"], low, high)
    axes.plot(told["flops"], told["predicted"], "D", color=BLUE, markersize=6, label="held out: predicted")
    if "measured" in told:
      axes.plot(told["flops"], told["measured"], "*", color=RED, markersize=14, label="held out: measured", zorder=5)
  _logarithmic(axes.set_xscale, axes.xaxis, _flops)
  axes.set(title="loss by compute", xlabel="model FLOPs C", ylabel=metric)
  axes.legend(fontsize=8, loc="upper right")
  return chart


def predicted(rows: Sequence[Row], found: Found, metric: str):
  """Measured over predicted loss, as a share: how far each run is from the law, and the held-out one."""
  chart = pictures.new_figure(7.4, 3.8)
  axes = chart.add_subplot()
  fit = found["fits"]["parameters"]
  law = Law(**fit["law"])
  budgets = sorted({row["budget"] for row in rows})
  for budget, colour in zip(budgets, shades(len(budgets)), strict=True):
    n, d, loss = columns([row for row in rows if row["budget"] == budget], "parameters")
    axes.plot(n, 100 * (loss / law.loss(n, d) - 1), "o", color=colour, markersize=6, label=f"{budget:.3g} FLOPs")
  told = fit.get("held out")
  if told:
    low, high = (100 * (value / told["predicted"] - 1) for value in told["interval"])
    _interval(axes, told["parameters"], low, high)
    axes.plot(told["parameters"], 0, "D", color=BLUE, markersize=6, label="held out: predicted")
    if "measured" in told:
      axes.plot(told["parameters"], 100 * told["error"], "*", color=RED, markersize=14, label="held out: measured")
  axes.axhline(0, color="#1c1f24", linewidth=1)
  _logarithmic(axes.set_xscale, axes.xaxis, _parameters)
  axes.set(title=f"measured {metric} over the law's", xlabel="parameters N", ylabel="% above the law")
  axes.legend(fontsize=8, ncols=2)
  return chart


def _logarithmic(set_scale, axis, say) -> None:
  """Tick labels by `say`: the style reads no text as a formula, and matplotlib's own for powers of ten are formulas."""
  from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

  set_scale("log")
  axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
  axis.set_minor_formatter(NullFormatter())


def _parameters(value: float) -> str:
  return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _flops(value: float) -> str:
  return f"{value:.0e}".replace("e+", "e")


def _interval(axes, x: float, low: float, high: float) -> None:
  """A line with caps; a percentile interval need not hold the prediction itself."""
  axes.plot([x, x], [low, high], "_-", color=BLUE, linewidth=1.4, markersize=9, markeredgewidth=1.4)
