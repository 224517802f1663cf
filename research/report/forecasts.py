"""The part of the page that looks at forecasts: their errors, by steps ahead too, and some of them against the truth,
each beside what a forecast without learning gives.

Of predictions.npz it reads "truth", "forecast" and "seasonal_naive" (N, H) and "naive" (N,), in the series' unit;
each example's origin is one row later than that of the example before.
"""

import html
from collections.abc import Mapping

import numpy as np

from research.report import svg
from research.report.measures import say_number

WINDOWS = 4
_HISTORY = 2  # horizons of the past that are drawn before an origin

Lines = dict[str, tuple[list[float], list[float]]]  # name → (x, y)


def section(predictions: Mapping[str, np.ndarray]) -> str:
  """HTML: a table of errors, their growth with the steps ahead, and some forecasts."""
  count, horizon = predictions["truth"].shape
  cards = [
    f'<div class="card"><table><thead>{_head()}</thead><tbody>{_rows(predictions)}</tbody></table></div>',
    _card("mean absolute error by steps ahead", error_by_step(predictions)),
  ]
  cards += [_card(f"from origin {origin:,}", drawn) for origin, drawn in windows(predictions)]
  values = "1 value" if horizon == 1 else f"{horizon:,} values"
  return (
    f'<h2>Forecasts</h2><p class="lead">{values} from each of {count:,} origins, in the series’ own unit. The naive'
    " forecast is the last value, the seasonal naive one the last season, again and again.</p>"
    f'<div class="charts">{"".join(cards)}</div>'
  )


def forecasters(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{name: values_NH float64}: the baselines, then the model's own "forecast"."""
  horizon = predictions["truth"].shape[1]
  made = {
    "naive": np.repeat(predictions["naive"][:, None], horizon, axis=1),
    "seasonal naive": predictions["seasonal_naive"],
    "forecast": predictions["forecast"],
  }
  return {name: values_NH.astype(np.float64) for name, values_NH in made.items()}


def error_by_step(predictions: Mapping[str, np.ndarray]) -> Lines:
  """Mean absolute error of the value h steps ahead, h = 1 … H."""
  truth_NH = predictions["truth"].astype(np.float64)
  steps = list(range(1, truth_NH.shape[1] + 1))
  made = forecasters(predictions)
  return {name: (steps, np.abs(made_NH - truth_NH).mean(axis=0).tolist()) for name, made_NH in made.items()}


def windows(predictions: Mapping[str, np.ndarray]) -> list[tuple[int, Lines]]:
  """(origin's number, lines over the steps ahead) of WINDOWS origins, spread evenly; the truth goes back too."""
  truth_NH, made = predictions["truth"], forecasters(predictions)
  count, horizon = truth_NH.shape
  history = min(_HISTORY * horizon, count - 1)
  found = []
  for origin in np.unique(np.linspace(history, count - 1, WINDOWS).astype(int)).tolist():
    # What an origin has behind it is what the origins before it had next.
    truth = np.concatenate([truth_NH[origin - history : origin, 0], truth_NH[origin]])
    ahead = list(range(1, horizon + 1))
    drawn = {"truth": (list(range(1 - history, horizon + 1)), truth.tolist())}
    drawn |= {name: (ahead, made_NH[origin].tolist()) for name, made_NH in made.items()}
    found.append((origin, drawn))
  return found


def _head() -> str:
  names = ("mean absolute error", "root mean squared error")
  return "<tr><th></th>" + "".join(f'<th class="number">{name}</th>' for name in names) + "</tr>"


def _rows(predictions: Mapping[str, np.ndarray]) -> str:
  truth_NH, rows = predictions["truth"].astype(np.float64), []
  for name, made_NH in reversed(forecasters(predictions).items()):
    error_NH = made_NH - truth_NH
    numbers = (float(np.abs(error_NH).mean()), float(np.sqrt((error_NH**2).mean())))
    cells = "".join(f'<td class="number">{say_number(value)}</td>' for value in numbers)
    rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
  return "".join(rows)


def _card(title: str, drawn: Lines) -> str:
  keys = "".join(
    f'<span><i class="key-{svg.colour(name, place)}"></i>{html.escape(name)}</span>' for place, name in enumerate(drawn)
  )
  return (f'<div class="card"><div class="head"><h3>{html.escape(title)}</h3><div class="legend">{keys}</div></div>'
          f"{svg.lines(drawn, 'ahead', title)}</div>")
