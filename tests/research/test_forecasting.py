"""The naive forecasts and the metrics against float64 loops over every origin; a fresh model is the naive forecast."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Optim, compiled

from research import evaluating, optim
from research import forecasting as subject
from research.data import feeds, series, transforms
from research.data.series_sources import Series
from research.errors import UserError
from research.models.forecast import LinearForecaster
from research.parallel.mesh import make_mesh
from research.parallel.tables import Layout
from research.task import State

CONTEXT, HORIZON, SEASON = 7, 5, 3


@pytest.fixture(scope="module")
def splits():
  values_T = 300.0 + 20.0 * np.random.default_rng(0).standard_normal(70).cumsum()
  found = Series("a", ("y",), values_T[:, None], "0" * 64)
  return series.split(
    found, context=CONTEXT, horizon=HORIZON, season=SEASON, validation_fraction=0.2, test_fraction=0.3
  )


def units_of(splits):
  return subject.Units(splits.target_mean, splits.target_std, splits.seasonal_error, SEASON)


def make_task(splits, **options):
  model = LinearForecaster(horizon=HORIZON)
  return compiled(subject.forecasting(model, optim.make_optimizer(Optim(), 10), units=units_of(splits), **options))


def reference(past, horizon, season):
  """(naive, seasonal naive) of one window, by their definitions: y_T, and y_{T+h−m·⌈h/m⌉} with T the last place."""
  last = len(past) - 1
  ahead = range(1, horizon + 1)
  return (
    np.array([past[last] for _ in ahead]),
    np.array([past[last + h - season * math.ceil(h / season)] for h in ahead]),
  )


@pytest.mark.parametrize(("length", "horizon", "season"), [(7, 5, 3), (7, 5, 7), (4, 9, 4), (5, 1, 2), (3, 4, 1)])
def test_the_naive_forecasts_are_their_definitions(length, horizon, season):
  past_BL = np.random.default_rng(length).standard_normal((4, length)).astype(np.float32)
  found = (
    subject.naive(jnp.asarray(past_BL), horizon),
    subject.seasonal_naive(jnp.asarray(past_BL), season, horizon),
  )
  for row in range(4):
    for ours, expected in zip(found, reference(past_BL[row], horizon, season), strict=True):
      np.testing.assert_array_equal(ours[row], expected)


@pytest.mark.parametrize("season", [0, 8])
def test_a_season_that_is_not_in_the_context_is_refused(season):
  with pytest.raises(ValueError, match=f"a season of {season} in a context of 7"):
    subject.seasonal_naive(jnp.zeros((1, 7)), season, 2)


def test_metrics_are_those_of_float64_loops_over_every_origin(splits):
  """In the series' unit, each window of the split once, whatever the batch size leaves over."""
  task, mesh, part = make_task(splits), make_mesh("data:2"), splits.test
  kernel = np.random.default_rng(2).normal(0, 0.2, (CONTEXT, HORIZON)).astype(np.float32)
  params = {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(HORIZON)}}
  state = State(jnp.int32(0), params, (), {})
  (feed,) = feeds.make_feeds(part, mesh, [feeds.InOrder(4, part.size)], kind="device", budget_bytes=0)
  assert part.size % 4
  evaluate = evaluating.evaluation_call(task, feed, transforms.chain([]), Layout(mesh))
  found = task.summarize(evaluate(jax.device_put(state, Layout(mesh).replicated)))

  own = lambda values: values.astype(np.float64) * splits.target_std + splits.target_mean  # noqa: E731
  errors = {"": [], "naive_": [], "seasonal_naive_": []}
  for past, future in zip(own(part.column("features")[..., 0]), own(part.column("target")), strict=True):
    naive, seasonal = reference(past, HORIZON, SEASON)
    ours = past[-1] + (past - past[-1]) @ kernel.astype(np.float64)
    for name, forecast in (("", ours), ("naive_", naive), ("seasonal_naive_", seasonal)):
      errors[name].append(forecast - future)
  for name, values in errors.items():
    mae, rmse = np.abs(values).mean(), np.sqrt(np.square(values).mean())
    assert found[f"{name}mae"] == pytest.approx(mae, rel=1e-5)
    assert found[f"{name}rmse"] == pytest.approx(rmse, rel=1e-5)
    assert found[f"{name}mase"] == pytest.approx(mae / splits.seasonal_error, rel=1e-5)
  best = min(found["naive_mae"], found["seasonal_naive_mae"])
  assert found["skill"] == pytest.approx(1 - found["mae"] / best)
  assert found["loss"] == pytest.approx(found["mae"] / splits.target_std)


def test_training_series_in_sample_seasonal_naive_has_a_mase_of_one():
  """The scale of MASE is the error of forecasting one step from a season before (Hyndman and Koehler 2006)."""
  values_T = np.random.default_rng(4).standard_normal(50)
  by_hand = np.mean([abs(values_T[t] - values_T[t - SEASON]) for t in range(SEASON, 50)])
  assert series.seasonal_error(values_T, SEASON) / by_hand == pytest.approx(1.0)


@pytest.mark.parametrize("loss", ["absolute", "squared"])
def test_a_fresh_model_is_the_naive_forecast_and_learns(splits, loss):
  task = make_task(splits, loss=loss, ema_decay=0.5)
  rows = splits.train.gather(np.arange(8))
  batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"mask": jnp.ones(8)}
  state = task.init(jax.random.key(0), batch)
  first = task.summarize(task.evaluate(state, batch))
  assert first["mae"] == pytest.approx(first["naive_mae"], rel=1e-6)
  for _ in range(60):
    state, found = task.step(state, batch, jax.random.key(1))
  last = task.summarize(task.evaluate(state, batch))
  assert last["loss"] < 0.7 * first["loss"]
  assert float(found["loss"]) < first["loss"]
  assert last["naive_mae"] == first["naive_mae"]
  squared = np.square(first["rmse"] / splits.target_std)
  assert first["loss"] == pytest.approx(squared if loss == "squared" else first["mae"] / splits.target_std, rel=1e-5)


def test_padding_counts_for_nothing(splits):
  task = make_task(splits)
  rows = splits.train.gather(np.arange(4))
  batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"mask": jnp.asarray([1.0, 1.0, 1.0, 0.0])}
  state = task.init(jax.random.key(0), batch)
  spoiled = {**batch, "target": batch["target"].at[3].set(jnp.nan)}
  assert task.summarize(task.evaluate(state, batch)) == task.summarize(task.evaluate(state, spoiled))


def test_examples_are_in_the_series_unit(splits):
  task = make_task(splits)
  rows = splits.test.gather(np.arange(3))
  batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"mask": jnp.ones(3)}
  found = task.per_example(task.init(jax.random.key(0), batch), batch)
  assert {name: value.shape for name, value in found.items()} == {
    "truth": (3, 5), "forecast": (3, 5), "naive": (3,), "seasonal_naive": (3, 5)
  }  # fmt: skip
  truth = rows["target"] * splits.target_std + splits.target_mean
  np.testing.assert_allclose(found["truth"], truth, rtol=1e-5)
  last = rows["features"][:, -1, 0] * splits.target_std + splits.target_mean
  np.testing.assert_allclose(found["naive"], last, rtol=1e-5)


def test_where_training_repeats_itself_there_is_no_mase_and_no_windows_are_an_error(splits):
  units = dataclasses.replace(units_of(splits), seasonal_error=0.0)
  names = [f"{prefix}{kind}_error" for prefix in subject.PREFIXES for kind in ("absolute", "squared")]
  found = subject.summary({"count": 2, **dict.fromkeys(names, 1.0)}, units, "absolute")
  assert "mase" not in found
  assert found["skill"] == 0.0
  perfect = subject.summary({"count": 2, **dict.fromkeys(names, 0.0)}, units, "absolute")
  assert math.isnan(perfect["skill"])  # nothing beats what makes no errors
  with pytest.raises(UserError, match="no windows"):
    subject.summary({"count": 0, **dict.fromkeys(names, 0.0)}, units, "absolute")
