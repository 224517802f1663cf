"""How numbers are said."""

import pytest

from research.report import measures


@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    ("validation/accuracy", 0.975, "97.50%"),
    ("generated/precision", 0.5, "50.00%"),
    ("floor/recall", 0.5, "50.00%"),
    ("generated/high_quality", 0.5, "50.00%"),
    ("generated/modes", 25.0, "25"),
    ("generated/frechet_distance", 31.2, "31.20"),
    ("validation/psnr", 0.5, "0.5000"),
    ("generated/quality", 0.5, "0.5000"),
    ("generated/frechet_distance", float("nan"), "NaN"),
  ],
)
def test_shares_are_said_in_per_cent(name, value, said):
  assert measures.say(name, value) == said


def test_floors_come_last_and_none_is_better_than_another():
  names = ["floor/recall", "generated/recall", "train/loss", "test/loss"]
  assert sorted(names, key=measures.split_order) == ["test/loss", "train/loss", "generated/recall", "floor/recall"]
  assert [measures.is_plain(name) for name in names] == [True, False, False, False]
