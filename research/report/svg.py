"""Curves and scatter plots as inline SVG: sharp at any size, coloured by the page's own style, in light and dark.

Colours are CSS classes (line-0, line-1, …), so that nothing here knows the theme; all text is escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence

from research.report.measures import is_share, say, say_number, with_minus
from research.report.panels import FLOOR, Line, Panel, log_ticks, ticks

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
_NOTHING = 1e-300  # what is smaller is drawn as 0: a tenth of it may be no number any more
_SHARE_SPAN = 0.1  # of the axis around a share that is the same all the time
COLOURS = {"train": 0, "validation": 1, "test": 2, FLOOR: 0}
COLOURS |= {"truth": 0, "forecast": 1, "seasonal naive": 3, "naive": 5}  # whichever split they are of
_DOTTED = 12  # points of a line that are marked, of a longer one none
_DIGIT, _GAP = 8.1, 8  # pixels: a digit's width in the ticks' type, and the least between two texts


class _Axis:
  """Maps values to pixels, straight or by their logarithm."""

  def __init__(
    self, low: float, high: float, start: float, end: float, logarithmic: bool = False, whole: bool = False
  ):
    self.logarithmic = logarithmic
    self._low, self._high = (math.log(low), math.log(high)) if logarithmic else (low, high)
    self._start, self._end = start, end
    self.ticks = log_ticks(low, high) if logarithmic else ticks(low, high, whole=whole)

  def __call__(self, value: float) -> float:
    value = math.log(value) if self.logarithmic else value
    share = (value - self._low) / (self._high - self._low)
    return round(self._start + share * (self._end - self._start), 1)


def colour(name: str, place: int) -> int:
  """The colour class of a curve: fixed for the known splits and forecasts, by place for all else."""
  return COLOURS.get(name, COLOURS.get(name.partition(" (")[0], 3 + place % 3))


def card(panel: Panel, last_step: int) -> str:
  """One panel with its title and its key, as HTML."""
  keys = "".join(
    f'<span><i class="key-{colour(line.name, place)}{" flat" if line.flat else ""}"></i>'
    f"{html.escape(line.name)}</span>"
    for place, line in enumerate(panel.lines)
  )
  scale = " (log)" if panel.logarithmic else ""
  title = html.escape(panel.name.replace("_", " ")) + scale
  return (f'<div class="card"><div class="head"><h3>{title}</h3><div class="legend">{keys}</div></div>'
          f"{curves(panel, last_step)}</div>")


def curves(panel: Panel, last_step: int = 0) -> str:
  """One panel as an <svg>: faint raw curves under their running means, a dot on each evaluation and on the best.

  A floor is a dashed line across. Steps go from 0 to `last_step` at least, so that all panels of a run have one axis.
  """
  finite = [value for line in panel.lines for value in line.values if math.isfinite(value)] or [0.0]
  steps = [step for line in panel.lines for step in line.steps]
  x = _Axis(0, max(1, last_step, *steps), _LEFT, _WIDTH - _RIGHT, whole=True)
  y = _Axis(*_range(panel, min(finite), max(finite)), _HEIGHT - _BOTTOM, _TOP, panel.logarithmic)
  parts = [_frame(x, y, "step", say_number, lambda value: _tick(panel.name, value))]
  for place, line in enumerate(panel.lines):
    parts.append(_line(panel.name, line, colour(line.name, place), x, y))
  parts.append(_alone(panel, x, y))
  return _svg(parts, f"{panel.name} over the steps")


def _alone(panel: Panel, x: _Axis, y: _Axis) -> str:
  """What the only point of a panel's only curve says, beside it: there is no curve yet to be read."""
  curves = [line for line in panel.lines if not line.flat]
  if len(curves) != 1 or len(curves[0].steps) != 1 or not math.isfinite(curves[0].values[0]):
    return ""
  place, height = x(curves[0].steps[0]), y(curves[0].values[0])
  side, anchor = (-14, "end") if place > _WIDTH / 2 else (14, "start")
  text = html.escape(say(panel.name, curves[0].values[0]))
  # Above the axis, where a value of 0 lies upon it.
  below = min(height + 6, _HEIGHT - _BOTTOM - 6)
  return f'<text class="value-alone" x="{place + side:.1f}" y="{below:.1f}" text-anchor="{anchor}">{text}</text>'


def _line(measure: str, line: Line, shade: int, x: _Axis, y: _Axis) -> str:
  if line.flat:
    title = html.escape(f"{line.name}: {say(measure, line.values[0])}")
    return (f'<path class="curve flat line-{shade}" d="M{_LEFT} {y(line.values[0])}H{_WIDTH - _RIGHT}">'
            f"<title>{title}</title></path>")
  raw = _path(line.steps, line.values, x, y)
  parts = [f'<path class="curve line-{shade}{" raw" if line.smooth else ""}" d="{raw}"/>']
  if line.smooth:
    parts.append(f'<path class="curve line-{shade}" d="{_path(line.steps, line.smooth, x, y)}"/>')
  radius = 2.6 if len(line.steps) > 1 else 4.5  # one alone has no line that leads to it
  if len(line.steps) <= (12 if line.name == "train" else 60):
    for step, value in zip(line.steps, line.values, strict=True):
      if math.isfinite(value):
        title = html.escape(f"{line.name} {measure}, step {step:,}: {say(measure, value)}")
        parts.append(f'<circle class="dot fill-{shade}" cx="{x(step)}" cy="{y(value)}" r="{radius}">'
                     f"<title>{title}</title></circle>")
  if line.best:
    step, value = line.best
    parts.append(f'<circle class="best line-{shade}" cx="{x(step)}" cy="{y(value)}" r="5.5"/>')
  return "".join(parts)


def _path(steps: Sequence[int], values: Sequence[float], x: _Axis, y: _Axis) -> str:
  """A path with a gap wherever a value is no finite number."""
  commands, pen_down = [], False
  for step, value in zip(steps, values, strict=True):
    if math.isfinite(value):
      commands.append(f"{'L' if pen_down else 'M'}{x(step)} {y(value)}")
    pen_down = math.isfinite(value)
  return "".join(commands)


def lines(named: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, label: str) -> str:
  """{name: (x, y)} as lines in one frame over whole x, the later over the earlier, in their names' colours."""
  points = [pair for xs, ys in named.values() for pair in zip(xs, ys, strict=True)]
  finite = [value for _, value in points if math.isfinite(value)] or [0.0]
  places = [place for place, _ in points] or [0.0]
  x = _Axis(*_span(min(places), max(places), 0), _LEFT, _WIDTH - _RIGHT, whole=True)
  y = _Axis(*_span(min(finite), max(finite), 0.05), _HEIGHT - _BOTTOM, _TOP)
  parts = [_frame(x, y, x_label, say_number, _plain_tick)]
  for place, (name, (xs, ys)) in enumerate(named.items()):
    shade = colour(name, place)
    parts.append(f'<path class="curve line-{shade}" d="{_path(xs, ys, x, y)}"/>')
    if len(xs) <= _DOTTED:
      dots = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
      parts += [f'<circle class="dot fill-{shade}" cx="{x(a)}" cy="{y(b)}" r="2.6"/>' for a, b in dots]
  return _svg(parts, label)


def scatter(target_N: Sequence[float], prediction_N: Sequence[float]) -> str:
  """Predictions over targets with the diagonal that perfect ones would lie on."""
  points = [pair for pair in zip(target_N, prediction_N, strict=True) if all(map(math.isfinite, pair))]
  everything = [value for pair in points for value in pair] or [0.0]
  low, high = _span(min(everything), max(everything), 0.04)
  x, y = _Axis(low, high, _LEFT, _WIDTH - _RIGHT), _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)
  dots = "".join(f'<circle class="point fill-1" cx="{x(a)}" cy="{y(b)}" r="3"/>' for a, b in points)
  diagonal = f'<path class="diagonal" d="M{x(low)} {y(low)}L{x(high)} {y(high)}"/>'
  return _svg([_frame(x, y, "true", _plain_tick, _plain_tick), diagonal, dots], "predicted over true values")


def _range(panel: Panel, low: float, high: float) -> tuple[float, float]:
  """What the axis of a panel's values shows: nothing that the values cannot be."""
  if panel.logarithmic:
    return low / 1.15, high * 1.15
  if not is_share(panel.name) or low < 0 or high > 1:
    return _span(low, high, 0.05)
  if _is_one(low, high):
    low = min(max(0.0, low - _SHARE_SPAN / 2), 1 - _SHARE_SPAN)
    return low, low + _SHARE_SPAN
  low, high = _span(low, high, 0.05)
  return low, min(1.0, high)


def _span(low: float, high: float, margin: float) -> tuple[float, float]:
  """A range that is never empty, widened by a share of itself, but not below 0 where nothing is."""
  if _is_one(low, high):
    size = max(abs(low), abs(high))
    return (low - 0.1 * size, high + 0.1 * size) if size > _NOTHING else (0.0, 1.0)
  wide_low = low - margin * (high - low)
  return (0.0 if wide_low < 0 <= low else wide_low), high + margin * (high - low)


def _is_one(low: float, high: float) -> bool:
  """Whether they are so near to each other that ticks between them would all read the same."""
  return high - low <= max(_NOTHING, 1e-5 * max(abs(low), abs(high)))


def _tick(measure: str, value: float) -> str:
  if is_share(measure):
    return with_minus(f"{100 * value:.6g}%")
  return _plain_tick(value)


def _plain_tick(value: float) -> str:
  return with_minus(f"{value:.6g}") if abs(value) < 1000 else say_number(value)


def _frame(x: _Axis, y: _Axis, label: str, say_x, say_y) -> str:
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  parts = []
  for value in y.ticks:
    parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{right}"/>'
                 f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 5}" text-anchor="end">'
                 f"{html.escape(say_y(value))}</text>")
  parts.append(f'<text class="tick" x="0" y="{bottom + 20}">{html.escape(label)}</text>')
  for value in x.ticks:
    text = say_x(value)
    if x(value) - _DIGIT * len(text) / 2 < _DIGIT * len(label) + _GAP:
      continue  # it would run into the axis' name
    parts.append(f'<text class="tick" x="{x(value)}" y="{bottom + 20}" text-anchor="middle">{html.escape(text)}</text>')
  parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
  return "".join(parts)


def _svg(parts: Sequence[str], label: str) -> str:
  return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
          f"{''.join(parts)}</svg>")
