"""The word sample of a forecaster: what comes after the series' last row, beside the naive forecasts, as a CSV file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.forecast.network import make_network, units_of
from experiments.schema import flag
from research.errors import UserError
from research.forecasting import forecasts
from research.report.measures import say_number
from research.task import State

SHOWN = 6  # lines on the terminal


@dataclasses.dataclass(frozen=True)
class Ahead:
  """The word sample's own flags, on the command line only"""

  output: str = flag("", "CSV file for the forecast; empty: generated/forecast.csv in the run's directory")

  def check(self) -> None:
    """No combination of these is impossible."""


def write(job: Any, state: State, request: Any) -> int:
  """Writes the next values, one a line; returns the exit code. Raises UserError where that cannot be."""
  asked: Ahead = request.sampling
  config, splits = request.config, job.data.splits
  units = units_of(splits, config.series.season)
  made = forecasts(make_network(config.model, config.series.horizon), units.season)
  state = jax.device_put(jax.device_get(state))  # one device forecasts
  standard_3H = np.concatenate(jax.device_get(jax.jit(made)(state, splits.latest_LC[None])))
  rows_H3 = (standard_3H.astype(np.float64) * units.scale + units.center).T
  lines = ["step,forecast,naive,seasonal_naive"]
  lines += [",".join([str(step), *(f"{value:.9g}" for value in row)]) for step, row in enumerate(rows_H3, start=1)]
  path = Path(asked.output).expanduser() if asked.output else request.workdir / "generated" / "forecast.csv"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
  except OSError as error:
    raise UserError(f"sample: cannot write {path}: {error.strerror or error}; give another --output") from error
  for step, row in enumerate(rows_H3[:SHOWN], start=1):
    told = zip(("forecast", "naive", "seasonal naive"), row, strict=True)
    print(f"{step:>4}  " + "  ".join(f"{name} {say_number(float(value))}" for name, value in told))
  print(f"the {len(rows_H3)} values after the series' last row: {path}")
  return 0
