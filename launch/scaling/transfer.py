"""Learning-rate transfer: widths × learning rates, in the standard parametrisation and by maximal update side by side.

What it shows is how far the best rate moves when the width grows. It does not say that a loss is better either way.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from launch.scaling import points
from launch.scaling.family import Family, Size, losses
from launch.scaling.points import Row
from research.errors import UserError
from research.report import pictures
from research.report.atomic import write_atomically

SIDES = {"standard": "standard parametrisation", "maximal": "maximal update"}
COLUMNS = ("name", "side", "width", "depth", "rate", "seed", "loss", "ok", "reason", "seconds")


@dataclasses.dataclass(frozen=True)
class Best:
  """Of one side and width.

  Attributes:
    rate: of those tried, the one with the least loss.
    loss: there, the mean over seeds.
    vertex: the best rate by the parabola through that point and its two neighbours, over log rate; None at an end.
  """

  rate: float
  loss: float
  vertex: float | None


def run(
  family: Family,
  sizes: Sequence[Size],
  base: int,
  rates: Sequence[float],
  seeds: int,
  report: Path,
  *,
  say: Callable[[str], None],
  retry: bool = False,
) -> None:
  """Runs what has not been run and writes points.csv, transfer.md and transfer.png.

  Args:
    family: whose runs.
    sizes: of one depth.
    base: the width at which both parametrisations are one.
    rates: learning rates.
    seeds: runs of each.
    report: where the tables and pictures go.
    say: is told how it goes.
    retry: run again what failed.
  """
  wanted = []
  for size in sizes:
    for rate in rates:
      for side in SIDES:
        for seed in range(seeds):
          name = f"{side}-{size}-r{rate:g}-s{seed}"
          width = base if side == "maximal" else 0
          flags = (f"--model.mup_base_width={width}", f"--optim.learning_rate={rate:g}", f"--seed={seed}")
          about = {"side": side, "width": size.width, "depth": size.depth, "rate": rate, "seed": seed}
          wanted.append(family.training(name, size, flags, about))
  rows = points.run_all(wanted, family.folder, family.loss_of, say=say, retry=retry)
  points.write_csv(report / "points.csv", rows, COLUMNS)
  if not losses(rows, say):
    raise UserError("laws: no run has a loss; logs/ in the study's directory has what they said")
  curves = curves_of(rows)
  write_atomically(report / "transfer.md", "\n".join(table(curves)) + "\n")
  pictures.write(report / "transfer.png", lambda: figure(curves, family.metric))
  say("\n".join(table(curves)))


Curves = Mapping[str, Mapping[int, Mapping[float, float]]]  # side → width → rate → mean loss; NaN: it diverged


def curves_of(rows: Sequence[Row]) -> Curves:
  """A rate with a seed that failed has the loss NaN."""
  found: dict[str, dict[int, dict[float, list[float]]]] = {side: {} for side in SIDES}
  for row in rows:
    own = found[row["side"]].setdefault(row["width"], {}).setdefault(row["rate"], [])
    own.append(row["loss"] if row["ok"] else math.nan)
  return {
    side: {width: {rate: float(np.mean(by_rate[rate])) for rate in sorted(by_rate)} for width, by_rate in own.items()}
    for side, own in found.items()
  }


def best_of(by_rate: Mapping[float, float]) -> Best | None:
  """None where nothing but failures was found."""
  rates = [rate for rate in sorted(by_rate) if math.isfinite(by_rate[rate])]
  if not rates:
    return None
  rate = min(rates, key=by_rate.__getitem__)
  place, vertex = rates.index(rate), None
  if 0 < place < len(rates) - 1:
    near = rates[place - 1 : place + 2]
    curve = np.polyfit(np.log(near), [by_rate[each] for each in near], 2)
    vertex = float(np.exp(-curve[1] / (2 * curve[0]))) if curve[0] > 0 else None
  return Best(rate, by_rate[rate], vertex)


def table(curves: Curves) -> list[str]:
  """Markdown: the best rate of each width on both sides, and what a rate chosen at the narrowest costs the wider."""
  lines = [
    "| width | standard: best rate | between rates | loss | at the narrowest's rate | maximal update: best rate"
    " | between rates | loss | at the narrowest's rate |",
    "| ---: |" + " ---: |" * 8,
  ]
  for width in next(iter(curves.values())):
    cells = []
    for side in SIDES:
      best, first = best_of(curves[side][width]), best_of(next(iter(curves[side].values())))
      if best is None or first is None:
        cells += ["none"] * 4
        continue
      taken = curves[side][width][first.rate]
      between = "at the end" if best.vertex is None else f"{best.vertex:.2g}"
      cells += [f"{best.rate:g}", between, f"{best.loss:.3f}", f"{taken:.3f}" if math.isfinite(taken) else "diverged"]
    lines.append(f"| {width} | {' | '.join(cells)} |")
  return lines


def figure(curves: Curves, metric: str):
  """Final loss over learning rate, a curve a width, a panel a side; a ring at each curve's least."""
  chart = pictures.new_figure(10.4, 4.4)
  widths = list(next(iter(curves.values())))
  colours = dict(zip(widths, shades(len(widths)), strict=True))
  shared = None
  finite = [loss for side in curves.values() for by_rate in side.values() for loss in by_rate.values()]
  finite = sorted(loss for loss in finite if math.isfinite(loss))
  least, room = finite[0], 0.05 * (finite[-1] - finite[0])
  most = min(finite[-1] + room, least + 4 * (float(np.median(finite)) - least))
  for place, (side, title) in enumerate(SIDES.items()):
    axes = shared = chart.add_subplot(1, 2, place + 1, sharey=shared)
    for width, by_rate in curves[side].items():
      rates = list(by_rate)
      axes.plot(rates, list(by_rate.values()), "o-", color=colours[width], linewidth=1.6, markersize=4,
                label=f"width {width}")  # fmt: skip
      if best := best_of(by_rate):
        axes.plot(best.rate, best.loss, "o", markerfacecolor="none", markeredgecolor=colours[width], markersize=11,
                  markeredgewidth=1.6)  # fmt: skip
        axes.axvline(best.vertex or best.rate, color=colours[width], linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_xscale("log", base=2)
    ticks = sorted({rate for by_rate in curves[side].values() for rate in by_rate})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=title, xlabel="learning rate")
    axes.set_ylim(least - room, most)
    if not place:
      axes.set_ylabel(metric)
      axes.legend(fontsize=9)
  return chart


def shades(count: int) -> list[str]:
  """From light to dark blue: a width is a quantity."""
  import matplotlib as mpl

  shades = mpl.colormaps["viridis_r"]
  return [mpl.colors.to_hex(shades(0.15 + 0.85 * place / max(count - 1, 1))) for place in range(count)]
