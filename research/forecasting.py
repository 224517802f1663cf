"""The task of forecasting a series, judged over every origin of a split beside what needs no learning.

A batch has "features" (B, L, C) float32, standardised, the target in channel 0, and "target" (B, H), what comes after.
Axes: B batch, L context, C channels, H horizon.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research import losses
from research.errors import UserError
from research.supervised import supervised
from research.task import Batch, State, Sums, Task

LOSSES = {"absolute": "mean_absolute_error", "squared": "mean_squared_error"}
PREFIXES = ("", "naive_", "seasonal_naive_")  # of metrics: the model's own, and the baselines'


@dataclasses.dataclass(frozen=True)
class Units:
  """What brings errors of standardised values back to the series' own unit.

  Attributes:
    center: the training mean of the target.
    scale: its standard deviation.
    seasonal_error: mean |y_t − y_{t−season}| in training, in the series' unit; 0: there is no MASE.
    season: rows of a season.
  """

  center: float
  scale: float
  seasonal_error: float
  season: int


def forecasting(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  units: Units,
  loss: str = "absolute",
  micro_batches: int = 1,
  ema_decay: float = 0.0,
) -> Task:
  """The task of a `model` of (x_BLC, *, train) → (B, H).

  Evaluation gives, over all H values from every origin once, loss (of standardised values), and in the series' unit mae
  and rmse; mase, mae over training's seasonal naive error (Hyndman and Koehler 2006); all three of the naive and the
  seasonal naive forecast; and skill, 1 − mae / that of the better of these two: above 0 the model beats both.

  Args:
    model: the network.
    optimizer: from research.optim.
    units: of the series.
    loss: one of LOSSES.
    micro_batches: parts of a batch whose gradients are accumulated.
    ema_decay: decay of the averaged parameters that evaluation uses; 0 for none.
  """
  learned = supervised(model, optimizer, loss=LOSSES[loss], micro_batches=micro_batches, ema_decay=ema_decay)
  made = forecasts(model, units.season)

  def evaluate(state: State, batch: Batch) -> Sums:
    truth_BH, real_B = batch["target"], batch["mask"] > 0

    def total(losses_B: jax.Array) -> jax.Array:
      return jnp.where(real_B, losses_B, 0.0).sum()

    sums = {"count": real_B.sum(dtype=jnp.int32)}
    for prefix, forecast_BH in zip(PREFIXES, made(state, batch["features"]), strict=True):
      sums[f"{prefix}absolute_error"] = total(losses.mean_absolute_error(forecast_BH, truth_BH))
      sums[f"{prefix}squared_error"] = total(losses.mean_squared_error(forecast_BH, truth_BH))
    return sums

  def per_example(state: State, batch: Batch) -> dict[str, jax.Array]:
    forecast_BH, naive_BH, seasonal_BH = (
      forecast_BH * units.scale + units.center for forecast_BH in made(state, batch["features"])
    )
    truth_BH = batch["target"] * units.scale + units.center
    return {"truth": truth_BH, "forecast": forecast_BH, "naive": naive_BH[:, 0], "seasonal_naive": seasonal_BH}

  def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
    return summary(sums, units, loss)

  return dataclasses.replace(
    learned, evaluate=evaluate, summarize=summarize, per_example=per_example, features=None, headline="mae"
  )


def forecasts(model: nn.Module, season: int) -> Callable[[State, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
  """(state, features_BLC) → the model's forecast, the naive and the seasonal naive one, (B, H) float32 each,
  standardised."""

  def made(state: State, x_BLC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    forecast_BH = model.apply({"params": state.extra.get("ema", state.params)}, x_BLC, train=False)
    horizon = forecast_BH.shape[1]
    return forecast_BH, naive(x_BLC[..., 0], horizon), seasonal_naive(x_BLC[..., 0], season, horizon)

  return made


def naive(past_BL: jax.Array, horizon: int) -> jax.Array:
  """The last value again and again (Hyndman and Athanasopoulos 2021, section 5.2), (B, H)."""
  return jnp.repeat(past_BL[:, -1:], horizon, axis=1)


def seasonal_naive(past_BL: jax.Array, season: int, horizon: int) -> jax.Array:
  """The last season again and again (Hyndman and Athanasopoulos 2021, section 5.2), (B, H); it needs season ≤ L."""
  length = past_BL.shape[1]
  if not 0 < season <= length:
    raise ValueError(f"seasonal_naive: a season of {season} in a context of {length}")
  return past_BL[:, length - season + jnp.arange(horizon) % season]


def summary(sums: Mapping[str, Any], units: Units, loss: str) -> dict[str, float]:
  """The named numbers of `forecasting`. No windows: UserError."""
  count = int(sums["count"])
  if count == 0:
    raise UserError("evaluation: there are no windows to evaluate on")
  found = {"loss": float(sums[f"{loss}_error"]) / count}
  for prefix in PREFIXES:
    mae = units.scale * float(sums[f"{prefix}absolute_error"]) / count
    found[f"{prefix}mae"] = mae
    found[f"{prefix}rmse"] = units.scale * math.sqrt(float(sums[f"{prefix}squared_error"]) / count)
    if units.seasonal_error:
      found[f"{prefix}mase"] = mae / units.seasonal_error
  best = min(found["naive_mae"], found["seasonal_naive_mae"])
  found["skill"] = 1.0 - found["mae"] / best if best else math.nan
  return found
