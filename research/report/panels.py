"""Which curves share an axis, and how many points of them are drawn: the same for pictures and for the page.

It drops no extreme: a curve with too many points becomes the lowest and highest value of each stretch.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from research import selection
from research.report.measures import baseline, best, is_baseline, is_floor, is_plain

FLOOR = "floor (real data)"  # how the line of a floor is labelled
_POINTS = 600
_SPLITS = ("train", "validation", "test")  # drawn in this order, in these fixed colours


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve; `smooth` is its running mean where it is noisy enough to want one, else empty.

  A `flat` line is a constant, drawn dashed across the whole panel, whatever its steps.
  """

  name: str
  steps: list[int]
  values: list[float]
  smooth: list[float]
  best: tuple[int, float] | None
  flat: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
  """Curves of one measure over the steps; `logarithmic` if positive values span more than a factor of 50."""

  name: str
  lines: list[Line]
  logarithmic: bool
  main: bool  # whether held-out data is measured, or it is a loss


def panels(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> list[Panel]:
  """Groups `split/name` by name: the loss first, then what was measured on held-out data, then the rest."""
  groups: dict[str, list[str]] = {}
  for name in curves:
    groups.setdefault(baseline(name)[1], []).append(name)
  made = [_panel(leaf, sorted(names, key=_order), curves) for leaf, names in groups.items()]
  made = [panel for panel in made if panel.lines]
  return sorted(made, key=_importance)


def _importance(panel: Panel) -> tuple[bool, bool, bool]:
  is_aside = is_plain(panel.name) and not panel.name.endswith("loss")  # a game's losses have no best, and are watched
  return not panel.main, panel.name != "loss", is_aside


def _order(name: str) -> int:
  split = name.split("/")[0]
  return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)


def _panel(leaf: str, names: Sequence[str], curves: Mapping) -> Panel:
  drawn = [name for name in names if not is_floor(name) and not is_baseline(name)]
  lines = [line(name.split("/")[0] if "/" in name else name, name, *curves[name]) for name in drawn]
  lines += [flat(FLOOR, *curves[name]) for name in names if is_floor(name)]
  lines += [flat(_baseline_label(name), *curves[name]) for name in names if is_baseline(name)]
  finite = [value for one in lines for value in one.values if math.isfinite(value)]
  falls = selection.lower_is_better(leaf)
  logarithmic = bool(finite) and falls and min(finite) > 0 and max(finite) > 50 * min(finite)
  held_out = any(not name.startswith("train/") and "/" in name for name in names)
  return Panel(leaf, [one for one in lines if one.steps], logarithmic, held_out or leaf == "loss")


def _baseline_label(name: str) -> str:
  return f"{baseline(name)[0]} ({name.partition('/')[0]})"


def line(label: str, metric: str, steps: Sequence[int], values: Sequence[float]) -> Line:
  """A curve ready to be drawn. `metric` tells which way is up."""
  smooth = running_mean(values, max(1, len(values) // 40)) if len(values) >= 80 else []
  picked = thin(values)
  return Line(
    label,
    [steps[i] for i in picked],
    [values[i] for i in picked],
    [smooth[i] for i in picked] if smooth else [],
    best(metric, steps, values),
  )


def flat(label: str, steps: Sequence[int], values: Sequence[float]) -> Line:
  """What needs no learning scores (the real data, a naive forecast), a constant: its last number stands for all."""
  known = [pair for pair in zip(steps, values, strict=True) if math.isfinite(pair[1])][-1:]
  return Line(label, [step for step, _ in known], [value for _, value in known], [], None, flat=True)


def thin(values: Sequence[float], points: int = _POINTS) -> list[int]:
  """Positions of at most `points` values that keep the ends and each stretch's extremes."""
  count = len(values)
  if count <= points:
    return list(range(count))
  stretches = points // 2 - 1
  kept = {0, count - 1}
  for stretch in range(stretches):
    places = range(stretch * count // stretches, (stretch + 1) * count // stretches)
    # A value that is no number is an extreme of its own: it shows as a gap.
    finite = [i for i in places if math.isfinite(values[i])] or list(places)
    kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
  return sorted(kept)


def running_mean(values: Sequence[float], half_width: int) -> list[float]:
  """The mean over each value and up to `half_width` finite neighbours on either side, down to 2 near the ends."""
  sums, counts = [0.0], [0]
  for value in values:
    finite = math.isfinite(value)
    sums.append(sums[-1] + (value if finite else 0.0))
    counts.append(counts[-1] + finite)
  means = []
  for place, value in enumerate(values):
    # As far to the left as to the right: a steep start must not be pulled towards what follows it.
    reach = min(half_width, max(2, min(place, len(values) - 1 - place)))
    low, high = max(0, place - reach), min(len(values), place + reach + 1)
    known = counts[high] - counts[low]
    means.append((sums[high] - sums[low]) / known if known and math.isfinite(value) else math.nan)
  return means


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
  """About `count` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`; if `whole`, whole ones."""
  span = high - low
  if span <= 0 or not math.isfinite(span):
    return [low]
  power = 10 ** math.floor(math.log10(span / count))
  power = max(1, power) if whole else power
  step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
  return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten between two positive numbers, every nth if there are many, with 2 and 5 if there are few."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  stride = max(1, math.ceil((last - first) / 6))
  factors = (1, 2, 5) if high < 200 * low else (1,)
  marks = [10.0**power * factor for power in range(first, last + 1, stride) for factor in factors]
  return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
