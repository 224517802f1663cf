"""What the page tells of forecasts: errors by hand, the past before an origin, baselines as dashed lines."""

import numpy as np
import pytest

from research.report import forecasts, measures, panels, pictures, svg

TRUTH = np.arange(12.0)  # a series; from each origin the next two values
FOUND = {
  "truth": np.stack([TRUTH[:-1], TRUTH[1:]], axis=1).astype(np.float32),
  "forecast": np.stack([TRUTH[:-1] + 0.5, TRUTH[1:] - 1.0], axis=1).astype(np.float32),
  "naive": (TRUTH[:-1] - 1).astype(np.float32),
  "seasonal_naive": np.stack([TRUTH[:-1] - 3, TRUTH[1:] - 3], axis=1).astype(np.float32),
}


def test_errors_by_steps_ahead():
  found = forecasts.error_by_step(FOUND)
  assert list(found) == ["naive", "seasonal naive", "forecast"]
  assert found["forecast"] == ([1, 2], [0.5, 1.0])
  assert found["naive"] == ([1, 2], [1.0, 2.0])
  assert found["seasonal naive"] == ([1, 2], [3.0, 3.0])


def test_a_window_has_the_past_that_the_origins_before_it_forecast():
  shown = forecasts.windows(FOUND)
  assert [origin for origin, _ in shown] == [4, 6, 8, 10]
  drawn = dict(shown)[6]
  assert drawn["truth"] == ([-3, -2, -1, 0, 1, 2], [2, 3, 4, 5, 6, 7])
  assert drawn["naive"] == ([1, 2], [5, 5])
  assert drawn["forecast"] == ([1, 2], [6.5, 6.0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_origins_and_a_horizon_of_one_are_drawn_too(count):
  short = {name: values[:count, :1] if values.ndim == 2 else values[:count] for name, values in FOUND.items()}
  section = forecasts.section(short)
  assert f">1 value from each of {count} origins," in section
  assert section.count("<h3>from origin") == len(forecasts.windows(short)) <= count
  assert '<circle class="dot fill-1"' in section


def test_the_section_and_the_figure_name_every_forecaster():
  section = forecasts.section(FOUND)
  assert '<tr><td>forecast</td><td class="number">0.7500</td><td class="number">0.7906</td></tr>' in section
  for name in ("truth", "forecast", "naive", "seasonal naive"):
    assert f"</i>{name}</span>" in section
  figure = pictures.forecasts_figure(FOUND)
  assert len(figure.axes) == 5
  assert {text.get_text() for text in figure.legends[0].get_texts()} == {"truth", "forecast", "naive", "seasonal naive"}


def test_lines_have_gaps_where_there_is_no_number():
  drawn = svg.lines({"forecast": ([1, 2, 3, 4], [1.0, float("nan"), 2.0, 3.0])}, "ahead", "a < b")
  path = drawn.split('<path class="curve line-1" d="')[1].split('"')[0]
  assert path.count("M") == 2
  assert "a &lt; b" in drawn


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("test/seasonal_naive_mae", ("seasonal naive", "mae")),
    ("validation/naive_rmse", ("naive", "rmse")),
    ("test/mae", ("", "mae")),
    ("train/loss", ("", "loss")),
  ],
)
def test_a_baselines_measure(name, expected):
  assert measures.baseline(name) == expected
  assert measures.is_baseline(name) == measures.is_plain(name) == bool(expected[0])


def test_a_baseline_is_a_dashed_line_in_the_models_panel():
  curves = {
    "validation/naive_mae": ([5, 10], [4.0, 4.0]),
    "validation/mae": ([5, 10], [3.0, 2.0]),
    "validation/seasonal_naive_mae": ([5, 10], [3.5, 3.5]),
  }
  (panel,) = panels.panels(curves)
  assert panel.name == "mae"
  assert [(line.name, line.flat) for line in panel.lines] == [
    ("validation", False), ("naive (validation)", True), ("seasonal naive (validation)", True)
  ]  # fmt: skip
  assert [line.best for line in panel.lines] == [(10, 2.0), None, None]
  drawn = svg.curves(panel)
  assert 'class="curve flat line-5"' in drawn
  assert 'class="curve flat line-3"' in drawn
