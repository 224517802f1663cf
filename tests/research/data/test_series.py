"""Windows of a series: cut by hand, the same by both feeds, and nothing of the future in what training sees."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import feeds, series
from research.data.series_sources import Series
from research.errors import UserError
from research.parallel.mesh import make_mesh


def made(values_TC, name="a"):
  values_TC = np.asarray(values_TC, np.float64)
  values_TC = values_TC[:, None] if values_TC.ndim == 1 else values_TC
  return Series(name, tuple("yxz"[: values_TC.shape[1]]), values_TC, "0" * 64)


def cut(values_TC, context=3, horizon=2, season=1, validation=0.2, test=0.2):
  return series.split(
    made(values_TC), context=context, horizon=horizon, season=season, validation_fraction=validation, test_fraction=test
  )


def rows_of(splits, part):
  """(the rows of each context, those of each horizon) of a series whose value is its row."""
  back = lambda values: np.round(values * splits.target_std + splits.target_mean).astype(int)  # noqa: E731
  return back(part.column("features")[..., 0]), back(part.column("target"))


def test_windows_by_hand():
  splits = cut(np.arange(20))
  context, horizon = rows_of(splits, splits.train)  # 20 rows: 4 of test, 3 of validation before them
  assert splits.train.size == 13 - 3 - 2 + 1
  assert context[0].tolist() == [0, 1, 2]
  assert horizon[0].tolist() == [3, 4]
  assert horizon[-1].tolist() == [11, 12]
  context, horizon = rows_of(splits, splits.validation)
  assert context.tolist() == [[10, 11, 12], [11, 12, 13]]
  assert horizon.tolist() == [[13, 14], [14, 15]]
  context, horizon = rows_of(splits, splits.test)
  assert context.tolist() == [[13, 14, 15], [14, 15, 16], [15, 16, 17]]
  assert horizon.tolist() == [[16, 17], [17, 18], [18, 19]]
  np.testing.assert_array_equal(splits.latest_LC, splits.test.values_TC[-3:])


def test_the_target_is_column_0_and_covariates_end_at_the_origin():
  part = cut(np.stack([np.arange(20.0), np.arange(20.0) ** 2], axis=1)).train
  rows = part.gather([2, 0])
  assert rows["features"].shape == (2, 3, 2)
  assert rows["target"].shape == (2, 2)
  np.testing.assert_array_equal(rows["features"][0], part.values_TC[2:5])
  np.testing.assert_array_equal(rows["target"][0], part.values_TC[5:7, 0])
  assert part.schema.feature_names == ("y", "x")


@settings(max_examples=40, deadline=None)
@given(
  st.integers(30, 90), st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 0.4), st.floats(0.1, 0.4)
)
def test_every_horizon_lies_in_its_split_and_every_context_before_it(size, context, horizon, validation, test):
  try:
    splits = cut(np.arange(size), context, horizon, 1, validation, test)
  except UserError:
    return
  seen = []
  for part in (splits.train, splits.validation, splits.test):
    past, future = rows_of(splits, part)
    np.testing.assert_array_equal(future[:, 0], past[:, -1] + 1)
    np.testing.assert_array_equal(future[:, 0], np.arange(future[0, 0], future[0, 0] + part.size))  # each origin once
    seen.append((future.min(), future.max()))
  (first, train_end), (validation_start, validation_end), (test_start, last) = seen
  assert (first, last) == (context, size - 1)
  assert (validation_start, test_start) == (train_end + 1, validation_end + 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_nothing_that_training_sees_depends_on_what_comes_after_it(seed, whole):
  """One value behind the boundary, or all of them, becomes another: not a bit of training changes."""
  random = np.random.default_rng(seed)
  values_TC = random.normal(5.0, 3.0, (60, 2))
  before = cut(values_TC, season=2)
  boundary = len(before.train.values_TC)
  place = slice(boundary, None) if whole else random.integers(boundary, 60)
  values_TC[place] = 1e3 * random.standard_normal(values_TC[place].shape)
  after = cut(values_TC, season=2)
  for name, stored in before.train.stored().items():
    np.testing.assert_array_equal(stored, after.train.stored()[name])
  for name in ("features", "target"):
    np.testing.assert_array_equal(before.train.column(name), after.train.column(name))
  for statistic in ("target_mean", "target_std", "seasonal_error"):
    assert getattr(before, statistic) == getattr(after, statistic)


def test_validation_does_not_depend_on_the_test():
  values = np.random.default_rng(0).standard_normal(60)
  before = cut(values)
  values[-12:] = 100.0
  np.testing.assert_array_equal(before.validation.values_TC, cut(values).validation.values_TC)


def test_a_column_is_standardised_by_training_rows_alone():
  values_TC = np.random.default_rng(1).normal(1e6, 3.0, (50, 2))
  values_TC[40:] += 1e4
  splits = cut(values_TC, validation=0.0)
  train_TC = values_TC[:40]
  expected = (values_TC - train_TC.mean(axis=0)) / train_TC.std(axis=0)
  np.testing.assert_allclose(splits.train.values_TC, expected[:40], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(splits.test.values_TC[-10:], expected[40:], rtol=1e-6)
  assert splits.validation is None


def test_a_constant_covariate_is_zero_and_a_constant_target_is_refused():
  values_TC = np.stack([np.arange(30.0), np.full(30, 7.0)], axis=1)
  values_TC[25:, 1] = 8.0
  assert not cut(values_TC).test.values_TC[:, 1].any()
  with pytest.raises(UserError, match="column 'y' is 7 in all 19 training rows; there is nothing to forecast"):
    cut(values_TC[:, ::-1])


def test_both_feeds_give_the_same_windows_and_a_device_holds_the_series_alone():
  part, mesh = cut(np.random.default_rng(0).standard_normal((60, 2))).train, make_mesh("data:2")
  plan = feeds.Shuffled(0, 4, part.size)
  device, grain = (feeds.make_feeds(part, mesh, [plan], kind=kind, budget_bytes=0)[0] for kind in ("device", "grain"))
  for step in (0, 1, 9):
    ours = jax.jit(device.batch)(device.inputs(step), step)
    theirs = jax.jit(grain.batch)(grain.inputs(step), step)
    assert ours.keys() == theirs.keys() == {"features", "target", "index", "mask"}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  grain.close()
  assert sum(array.nbytes for array in device.inputs(0).values()) == part.nbytes == 38 * 2 * 4


def test_the_seasonal_error_by_hand():
  assert series.seasonal_error(np.array([1.0, 5.0, 2.0, 9.0]), 2) == 2.5  # |2 − 1| and |9 − 5|
  with pytest.raises(ValueError, match="a season of 4 in 4 values"):
    series.seasonal_error(np.zeros(4), 4)
  splits = cut(np.tile([1.0, 2.0, 4.0], 10), season=3)
  assert splits.seasonal_error == 0
  assert splits.notes == ("training repeats itself each 3 rows: there is no MASE",)


@pytest.mark.parametrize(
  ("size", "options", "message"),
  [
    (20, {"context": 12}, "fewer than a context of 12 and a horizon of 2; --series.context=11 would fit"),
    (20, {"horizon": 13, "validation": 0, "test": 0.65}, "has 7 rows for training, .* --series.horizon=6 is the most"),
    (20, {"horizon": 5}, "the test split of a would have 4 of its 20 rows, fewer than a horizon of 5"),
    (20, {"horizon": 4}, "the validation split of a would have 3 of its 20 rows, fewer than a horizon of 4"),
    (3, {"validation": 0, "test": 0}, "has 3 rows for training"),
  ],
)
def test_a_series_without_room_for_a_window_is_refused(size, options, message):
  with pytest.raises(UserError, match=message):
    cut(np.arange(size), **options)
