"""What is drawn of a curve: grouping, thinning, smoothing and ticks."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.report import panels, svg


def test_splits_of_a_measure_share_a_panel_and_the_loss_comes_first():
  names = ("train/learning_rate", "train/clipped", "train/accuracy", "test/accuracy", "validation/accuracy")
  curves = {**{name: ([1], [0.5]) for name in names}, "train/loss": ([1, 2], [100.0, 1.0])}
  found = panels.panels(curves)
  assert [panel.name for panel in found] == ["loss", "accuracy", "clipped", "learning_rate"]
  assert [line.name for line in found[1].lines] == ["train", "validation", "test"]
  assert [panel.main for panel in found] == [True, True, False, False]
  assert [panel.logarithmic for panel in found] == [True, False, False, False]


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy():
  found = panels.panels({"test/loss": ([1, 2, 3], [2.0, 1.0, math.nan]), "test/accuracy": ([1, 2], [0.5, 0.25])})
  assert [panel.lines[0].best for panel in found] == [(2, 1.0), (1, 0.5)]


def test_a_floor_is_a_flat_line_of_its_last_number():
  curves = {
    "floor/frechet_distance": ([5, 6, 7], [2.0, 3.0, math.nan]),
    "generated/frechet_distance": ([10, 20, 30], [400.0, 200.0, 4.0]),
    "floor/recall": ([0], [math.nan]),
  }
  (panel,) = panels.panels(curves)
  generated, floor = panel.lines
  assert (floor.name, floor.values, floor.flat, floor.best) == (panels.FLOOR, [3.0], True, None)
  assert (generated.name, generated.flat, generated.best) == ("generated", False, (30, 4.0))
  assert panel.logarithmic  # over 400 to 3


@pytest.mark.parametrize("generated", [[9.0, 5.0], []])
def test_a_floor_of_one_point_is_drawn_across_the_page(generated):
  curves = {"floor/frechet_distance": ([7], [4.0])}
  curves |= {"generated/frechet_distance": ([10, 20], generated)} if generated else {}
  (panel,) = panels.panels(curves)
  drawn = svg.curves(panel)
  (path,) = re.findall(r'<path class="curve flat line-0" d="M([\d.]+) ([\d.]+)H(\d+)">', drawn)
  axis = re.search(r'<path class="axis" d="M(\d+) (\d+)H(\d+)"', drawn)
  assert (path[0], path[2]) == (axis[1], axis[3])
  assert 0 < float(path[1]) < float(axis[2])  # within the frame, although all else is above it
  assert f"<title>{panels.FLOOR}: 4</title>" in drawn


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(10, 50))
def test_thinning_keeps_ends_and_extremes(values, points):
  kept = panels.thin(values, points)
  assert len(kept) <= points
  assert kept == sorted(set(kept))
  assert kept[0] == 0
  assert kept[-1] == len(values) - 1
  assert {min(values), max(values)} <= {values[i] for i in kept}


def test_the_running_mean_is_the_mean_of_finite_neighbours():
  values = np.random.default_rng(0).normal(size=40).tolist()
  values[20] = math.nan
  found = panels.running_mean(values, 5)
  assert found[12] == pytest.approx(np.mean(values[7:18]))
  assert found[18] == pytest.approx(np.nanmean(values[13:24]))
  assert found[0] == pytest.approx(np.mean(values[:3]))
  assert math.isnan(found[20])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low, span):
  found = panels.ticks(low, low + span)
  slack = 1e-6 * span
  assert 1 <= len(found) <= 6
  assert all(low - slack <= tick <= low + span + slack for tick in found)
  if len(found) > 1:
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-3


def test_log_ticks_are_powers_of_ten():
  assert panels.log_ticks(1e-4, 1.0) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
  assert panels.log_ticks(0.1, 3.0) == pytest.approx([0.1, 0.2, 0.5, 1, 2])
