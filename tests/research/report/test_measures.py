"""How numbers are said."""

import math

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
    ("test/skill", -0.25, "−0.2500"),
    ("test/elbo", -1234.5, "−1,234"),
    ("test/elbo", -3.0, "−3"),
    ("test/gap", -1.2e-5, "−1.2e−05"),
    ("test/elbo", float("-inf"), "−∞"),
  ],
)
def test_shares_are_said_in_per_cent(name, value, said):
  assert measures.say(name, value) == said


def test_floors_come_last_and_none_is_better_than_another():
  names = ["floor/recall", "generated/recall", "train/loss", "test/loss"]
  assert sorted(names, key=measures.split_order) == ["test/loss", "train/loss", "generated/recall", "floor/recall"]
  assert [measures.is_plain(name) for name in names] == [True, False, False, False]


@pytest.mark.parametrize(
  ("name", "values", "best"),
  [
    ("validation/accuracy", [0.5, 0.9, 0.7], (2, 0.9)),
    ("validation/loss", [0.5, 0.9, 0.7], (1, 0.5)),
    ("generated/word_error", [0.5, 0.2, 0.7], (2, 0.2)),
    ("validation/dropped", [0.5, 0.2, 0.7], (2, 0.2)),
    ("validation/loss", [0.5], None),  # the best of one
    ("generated/recall", [0.0, 0.0, 0.0], None),
    ("generated/recall", [0.0, 1e-9, math.nan], None),  # 0.00% all the time, as it reads
    ("train/loss", [0.5, 0.2, 0.7], None),  # of the luckiest batch
    ("train/dropped_tokens", [5.0, 2.0], None),
    ("train/generator_loss", [0.5, 0.2, 0.7], None),
    ("generated/kernel_distance_error", [0.5, 0.2], None),
    ("generated/density", [0.5, 1.5], None),
    ("test/kl", [0.5, 1.5], None),
    ("test/real_logit", [0.5, 1.5], None),
    ("floor/recall", [0.5, 0.6], None),
    ("validation/naive_mae", [0.5, 0.6], None),
  ],
)
def test_a_best_is_told_only_where_it_says_something(name, values, best):
  assert measures.best(name, list(range(1, len(values) + 1)), values) == best


def test_game_losses_lead_no_comparison():
  assert measures.is_plain("train/discriminator_loss")
  assert not measures.is_plain("train/loss")


def test_a_duration_has_the_unit_that_suits_it():
  times = (0.0, 3e-10, 0.00000012, 7.891e-6, 0.0456, 0.9999, 1.23, 1234.0)
  assert [measures.say_duration(each) for each in times] == [
    "0 s", "0.3 ns", "120 ns", "7.89 µs", "45.6 ms", "1 s", "1.23 s", "20:34"
  ]  # fmt: skip
