"""What the axes of the page's charts show: nothing that a value cannot be, and no text over another."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.report import panels, svg

TEXT = re.compile(r'<text class="tick" x="([-\d.]+)" y="([-\d.]+)"( text-anchor="(\w+)")?>([^<]*)</text>')
shares = st.floats(0, 1)


def drawn(curves, last_step=0):
  (panel,) = panels.panels(curves)
  return svg.curves(panel, last_step)


def texts(picture):
  """(the axis' name, ticks along x, ticks along y) as they read; each tick as (place, text)."""
  found = [(float(x), float(y), anchor, text) for x, y, _, anchor, text in TEXT.findall(picture)]
  lowest = max(y for _, y, _, _ in found)
  (name,) = [text for _, _, anchor, text in found if not anchor]
  along_x = [(x, text) for x, y, anchor, text in found if y == lowest and anchor == "middle"]
  return name, along_x, [(y, text) for _, y, anchor, text in found if anchor == "end"]


def number(text):
  return float(text.replace("−", "-").replace(",", "").rstrip("%"))


def y_numbers(picture):
  return [number(text) for _, text in texts(picture)[2]]


@given(st.lists(shares, min_size=1, max_size=5), st.lists(shares, max_size=1))
def test_an_axis_of_shares_stays_between_0_and_100(values, floor):
  curves = {"test/accuracy": (list(range(1, len(values) + 1)), values)}
  curves |= {"floor/accuracy": ([1], floor)} if floor else {}
  picture = drawn(curves)
  ticks = y_numbers(picture)
  assert ticks
  assert 0 <= min(ticks) <= max(ticks) <= 100
  heights = [float(y) for y in re.findall(r'<circle class="dot[^>]* cy="([-\d.]+)"', picture)]
  assert len(heights) == len(values)
  assert all(12 <= y <= 286 for y in heights)  # within the frame


@pytest.mark.parametrize(
  ("name", "value", "low", "high"),
  [
    ("test/accuracy", 0.9, 85, 95),
    ("test/accuracy", 0.0, 0, 10),
    ("test/accuracy", 1.0, 90, 100),
    ("test/loss", 0.3, 0.27, 0.33),
    ("test/skill", -0.3, -0.33, -0.27),
    ("generated/modes", 0.0, 0, 1),
  ],
)
@pytest.mark.parametrize("repeated", [1, 3])
def test_one_value_alone_has_a_small_range_about_it(name, value, low, high, repeated):
  ticks = y_numbers(drawn({name: (list(range(1, repeated + 1)), [value] * repeated)}))
  assert len(ticks) >= 3
  assert len(set(ticks)) == len(ticks)
  assert low - 1e-9 <= min(ticks) <= max(ticks) <= high + 1e-9
  assert max(ticks) - min(ticks) > 0.5 * (high - low)


def test_values_that_differ_in_the_last_digit_alone_have_ticks_that_differ():
  ticks = y_numbers(drawn({"test/loss": ([1, 2], [0.5, 0.5 + 1e-9])}))
  assert len(set(ticks)) == len(ticks) >= 3


def test_what_is_never_negative_has_no_axis_below_0():
  assert 'cy="286.0"' in drawn({"generated/modes": ([1, 2], [0.0, 3.0])})  # on the axis
  assert min(y_numbers(drawn({"test/skill": ([1, 2], [-0.5, 0.0])}))) < 0


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=5, unique=True), st.integers(0, 10**7))
def test_steps_are_whole_and_go_from_0_to_the_last(steps, last):
  steps = sorted(steps)
  name, ticks, _ = texts(drawn({"train/loss": (steps, [1.0] * len(steps))}, last))
  assert name == "step"
  assert all(re.fullmatch(r"[\d,]+", text) for _, text in ticks)
  assert len({text for _, text in ticks}) == len(ticks) >= 2
  assert number(ticks[0][1]) == 0
  assert 0.5 * max(last, *steps, 1) <= number(ticks[-1][1]) <= max(last, *steps, 1)


def test_all_panels_of_a_run_have_one_step_axis():
  both = [texts(drawn({"test/loss": ([step], [1.0])}, 300))[1] for step in (20, 300)]
  assert both[0] == both[1]


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_name_of_an_axis_stands_clear_of_its_ticks(start, length):
  xs = [float(start - length), float(start)]
  name, ticks, _ = texts(svg.lines({"truth": (xs, [0.0, 1.0])}, "ahead", "x"))
  digit = 8.1
  assert all(x - digit * len(text) / 2 >= digit * len(name) + 4 for x, text in ticks)


def test_steps_ahead_are_whole():
  _, ticks, _ = texts(svg.lines({"truth": ([1.0, 2.0], [0.0, 1.0])}, "ahead", "x"))
  assert [text for _, text in ticks] == ["1", "2"]


def test_numbers_below_0_have_a_true_minus():
  picture = drawn({"test/skill": ([1, 2], [-0.5, -0.25])}) + svg.scatter([-2.0, 1.0], [-2000.0, 3.0])
  written = "".join(re.findall(r">([^<]+)<", picture))
  assert "−0.4" in written
  assert "−2,000" in written
  assert "-" not in written


def test_a_ring_marks_a_best_that_tells_something():
  def rings(*values):
    return drawn({"test/accuracy": (list(range(len(values))), list(values))}).count('class="best')

  assert rings(0.5, 0.75) == 1
  assert rings(0.5) == rings(0.0, 0.0, 0.0) == rings(0.5, math.nan) == 0


def test_one_point_alone_is_told_in_a_number():
  def told(*values):
    picture = drawn({"test/accuracy": (list(range(1, 1 + len(values))), list(values)), "floor/accuracy": ([1], [0.5])})
    return re.findall(r'<text class="value-alone"[^>]*>(.*?)<', picture)

  assert told(0.25) == ["25.00%"]
  assert told(0.25, 0.5) == told(math.nan) == []
