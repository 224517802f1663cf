"""Curves and scatter plots as inline SVG: sharp at any size, coloured by the page's own style, in light and dark.

Colours are CSS classes (line-0, line-1, …), so that nothing here knows the theme; all text is escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence

from research.report.measures import say, say_number
from research.report.panels import FLOOR, Line, Panel, log_ticks, ticks

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
COLOURS = {"train": 0, "validation": 1, "test": 2, FLOOR: 0}
COLOURS |= {"truth": 0, "forecast": 1, "seasonal naive": 3, "naive": 5}  # whichever split they are of
_DOTTED = 12  # points of a line that are marked, of a longer one none


class _Axis:
  """Maps values to pixels, straight or by their logarithm."""

  def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = False):
    self.logarithmic = logarithmic
    self._low, self._high = (math.log(low), math.log(high)) if logarithmic else (low, high)
    self._start, self._end = start, end
    self.ticks = log_ticks(low, high) if logarithmic else ticks(low, high)

  def __call__(self, value: float) -> float:
    value = math.log(value) if self.logarithmic else value
    share = (value - self._low) / (self._high - self._low)
    return round(self._start + share * (self._end - self._start), 1)


def colour(name: str, place: int) -> int:
  """The colour class of a curve: fixed for the known splits and forecasts, by place for all else."""
  return COLOURS.get(name, COLOURS.get(name.partition(" (")[0], 3 + place % 3))


def curves(panel: Panel) -> str:
  """One panel as an <svg>: faint raw curves under their running means, a dot on each evaluation and on the best.

  A floor is a dashed line across.
  """
  finite = [value for line in panel.lines for value in line.values if math.isfinite(value)] or [0.0]
  steps = [step for line in panel.lines for step in line.steps]
  x = _Axis(*_span(min(steps), max(steps), 0), _LEFT, _WIDTH - _RIGHT)
  low, high = (
    (min(finite) / 1.15, max(finite) * 1.15) if panel.logarithmic else _span(min(finite), max(finite), 0.05)
  )
  y = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, panel.logarithmic)
  parts = [_frame(x, y, "step", lambda value: say_number(value), lambda value: _tick(panel.name, value))]
  for place, line in enumerate(panel.lines):
    parts.append(_line(panel.name, line, colour(line.name, place), x, y))
  return _svg(parts, f"{panel.name} over the steps")


def _line(measure: str, line: Line, shade: int, x: _Axis, y: _Axis) -> str:
  if line.flat:
    title = html.escape(f"{line.name}: {say(measure, line.values[0])}")
    return (f'<path class="curve flat line-{shade}" d="M{_LEFT} {y(line.values[0])}H{_WIDTH - _RIGHT}">'
            f"<title>{title}</title></path>")
  raw = _path(line.steps, line.values, x, y)
  parts = [f'<path class="curve line-{shade}{" raw" if line.smooth else ""}" d="{raw}"/>']
  if line.smooth:
    parts.append(f'<path class="curve line-{shade}" d="{_path(line.steps, line.smooth, x, y)}"/>')
  if len(line.steps) <= (12 if line.name == "train" else 60):
    for step, value in zip(line.steps, line.values, strict=True):
      if math.isfinite(value):
        title = html.escape(f"{line.name} {measure}, step {step:,}: {say(measure, value)}")
        parts.append(f'<circle class="dot fill-{shade}" cx="{x(step)}" cy="{y(value)}" r="2.6">'
                     f"<title>{title}</title></circle>")
  if line.best and line.name != "train":
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
  """{name: (x, y)} as lines in one frame, the later over the earlier, in their names' colours."""
  points = [pair for xs, ys in named.values() for pair in zip(xs, ys, strict=True)]
  finite = [value for _, value in points if math.isfinite(value)] or [0.0]
  places = [place for place, _ in points] or [0.0]
  x = _Axis(*_span(min(places), max(places), 0), _LEFT, _WIDTH - _RIGHT)
  y = _Axis(*_span(min(finite), max(finite), 0.05), _HEIGHT - _BOTTOM, _TOP)
  parts = [_frame(x, y, x_label, say_number, say_number)]
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
  return _svg([_frame(x, y, "true", say_number, say_number), diagonal, dots], "predicted over true values")


def _span(low: float, high: float, margin: float) -> tuple[float, float]:
  """A range that is never empty, widened by a share of itself."""
  if high <= low:
    pad = abs(low) * 0.1 or 0.5
    return low - pad, high + pad
  return low - margin * (high - low), high + margin * (high - low)


def _tick(measure: str, value: float) -> str:
  text = say(measure, value)
  return f"{100 * value:.6g}%" if text.endswith("%") else f"{value:.6g}" if abs(value) < 1e4 else say_number(value)


def _frame(x: _Axis, y: _Axis, label: str, say_x, say_y) -> str:
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  parts = []
  for value in y.ticks:
    parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{right}"/>'
                 f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 5}" text-anchor="end">'
                 f"{html.escape(say_y(value))}</text>")
  for value in x.ticks:
    parts.append(f'<text class="tick" x="{x(value)}" y="{bottom + 20}" text-anchor="middle">'
                 f"{html.escape(say_x(value))}</text>")
  parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
  parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{bottom + 20}" text-anchor="end">{html.escape(label)}</text>')
  return "".join(parts)


def _svg(parts: Sequence[str], label: str) -> str:
  return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
          f"{''.join(parts)}</svg>")
