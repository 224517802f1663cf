"""PNG files show the numbers they are made of."""

import numpy as np
import pytest
from PIL import Image

from research.report import panels, pictures, tables


def test_a_classifier_leaves_curves_a_matrix_and_mistakes(make_run, classified):
  folder = make_run(draw=True, **classified) / "pictures"
  assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "curves.png", "mistakes.png"]
  for path in folder.iterdir():
    with Image.open(path) as picture:
      assert picture.format == "PNG"
      assert picture.width >= 600


def test_the_matrix_is_normalised_by_row_and_tells_counts():
  counts = tables.confusion_matrix(np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1]), 2)
  (axes, _) = pictures.confusion_figure(counts, ["a", "b"]).axes
  np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
  assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "3", (1, 0): "1", (1, 1): "1"}


def test_a_matrix_of_many_classes_tells_no_counts():
  (axes, _) = pictures.confusion_figure(np.eye(13, dtype=int), list(map(str, range(13)))).axes
  assert not axes.texts


def test_a_floor_is_dashed_across_the_plot():
  curves = {"generated/recall": ([10, 20], [0.1, 0.5]), "floor/recall": ([10], [0.75])}
  (axes,) = pictures.curves_figure(panels.panels(curves)).axes
  generated, floor = axes.lines[0], axes.lines[-1]
  assert (floor.get_label(), list(floor.get_ydata())) == (panels.FLOOR, [0.75, 0.75])
  assert list(floor.get_xdata()) == [0, 1]  # shares of the plot's width
  assert (floor.is_dashed(), generated.is_dashed()) == (True, False)


@pytest.mark.parametrize("value", [0.0, 0.96, 1.0])
def test_one_share_alone_has_axes_that_are_possible(value):
  (axes,) = pictures.curves_figure(panels.panels({"test/accuracy": ([3], [value])})).axes
  low, high = axes.get_ylim()
  assert 0 <= low <= value <= high <= 1
  assert axes.get_xlim()[0] == 0
  assert all(step == int(step) for step in axes.get_xticks())


@pytest.mark.parametrize("count", [1, 8, 9, 30])
def test_runs_have_different_colours(count):
  assert len(set(pictures.run_colours(count))) == count
