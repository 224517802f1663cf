"""A sweep's pictures show its rows: each trial's curve, each flag against the metric, two flags as a map."""

import numpy as np
import pytest

from launch.sweep import grammar, plots

RATES = grammar.Values("optim.learning_rate", ("1e-3", "1e-2", "1e-1"))
NAMES = grammar.Values("optim.name", ("sgd", "adamw"))


def row(rate, name, values, state="done"):
  best = min(range(len(values)), key=values.__getitem__)
  return {
    "name": f"{rate}-{name}", "state": state, "value": values[best], "best_step": 10 * (best + 1), "reason": "",
    "flags": {"optim.learning_rate": rate, "optim.name": name},
    "curve": [(10 * step, value) for step, value in enumerate(values, start=1)],
  }  # fmt: skip


ROWS = [
  row("1e-2", "adamw", [0.5, 0.1, 0.2]),
  row("1e-3", "adamw", [0.9, 0.4]),
  row("1e-2", "sgd", [2.0, 0.7]),
  row("1e-1", "sgd", [3.0], "pruned"),
]


def test_curves_have_rings_at_the_best_and_crosses_where_they_were_pruned():
  (axes,) = plots.curves_figure(ROWS, "validation/loss").axes
  curves = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
  assert list(curves["1e-2-adamw"].get_ydata()) == [0.5, 0.1, 0.2]
  assert axes.get_yscale() == "log"
  marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
  ends = {(line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in marks}
  assert {("o", 20, 0.1), ("x", 10, 3.0)} <= ends
  dark, light = (sum(curves[name].get_color()[:3]) for name in ("1e-2-adamw", "1e-1-sgd"))
  assert dark < light


def test_a_flag_against_the_metric():
  rates, names = plots.flags_figure(ROWS, [RATES, NAMES], "validation/loss").axes
  assert rates.get_xscale() == "log"
  assert [label.get_text() for label in rates.get_xticklabels()] == ["0.001", "0.01", "0.1"]
  assert [label.get_text() for label in names.get_xticklabels()] == ["adamw", "sgd"]
  joined = max(rates.lines, key=lambda line: len(line.get_xdata()))
  assert list(zip(joined.get_xdata(), joined.get_ydata(), strict=True)) == [(0.001, 0.4), (0.01, 0.1)]
  hollow = [line.get_xdata()[0] for line in rates.lines if line.get_markerfacecolor() == "none"]
  assert hollow == [0.1]


def test_two_flags_as_a_map():
  again = row("1e-2", "adamw", [0.6])  # drawn twice; the better one is shown
  axes, _ = plots.heat_figure([*ROWS[:3], again, ROWS[3]], [RATES, NAMES], "validation/loss").axes
  cells = np.ma.filled(axes.images[0].get_array(), np.nan)
  np.testing.assert_allclose(cells, [[0.4, np.nan], [0.1, 0.7], [np.nan, 3.0]])
  texts = {text.get_position(): text.get_text() for text in axes.texts}
  assert texts[0, 1] == "0.1000"
  assert texts[1, 2] == "3\n(not to its end)"


@pytest.mark.parametrize(("low", "logarithmic"), [(1e-3, True), (0.0, False)])
def test_a_range_has_the_scale_that_it_was_drawn_by(low, logarithmic):
  swept = grammar.Range("optim.learning_rate", low, 1.0, logarithmic, False)
  (axes, *_) = plots.flags_figure(ROWS, [swept], "validation/loss").axes
  assert axes.get_xscale() == ("log" if logarithmic else "linear")


def test_pictures_are_written_for_what_there_is(tmp_path):
  assert plots.write(tmp_path, [], [RATES, NAMES], "validation/loss") == []
  made = plots.write(tmp_path, ROWS[:1], [RATES, NAMES], "validation/loss")
  assert [path.name for path in made] == ["curves.png", "flags.png", "heatmap.png"]
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
