"""Forecast a series of numbers by a linear map, LSTM, GRU or a small transformer, beside the naive forecasts."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

from experiments.command import Definition, main
from experiments.forecast.ahead import Ahead, write
from experiments.forecast.network import Model, make_network, units_of
from experiments.schema import AUGMENTATION, Data, Experiment, flag
from research import optim
from research.data.series import SeriesSplits, open_series
from research.errors import UserError
from research.forecasting import LOSSES, forecasting
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Series:
  """What is forecast from what"""

  context: int = flag(96, "values that a forecast sees", low=1)
  horizon: int = flag(24, "values that are forecast, all at once", low=1)
  season: int = flag(24, "values of a season: what the seasonal naive forecast repeats and MASE is scaled by", low=1)
  covariates: str = flag("", "csv: other columns that are read up to the origin, A,B; *: all columns of numbers")


@dataclasses.dataclass(frozen=True)
class Loss:
  """What is made small, of standardised values"""

  name: str = flag("absolute", "mean error of all values of the horizon", choices=tuple(LOSSES))


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  unused: ClassVar = dict.fromkeys(
    (*AUGMENTATION, "data.label_smoothing", "data.split_seed"),
    "is not for a series, whose splits follow time and whose values stay",
  )

  data: Data = dataclasses.field(
    default_factory=lambda: Data(source="synthetic:seasonal", validation_fraction=0.2, test_fraction=0.2)
  )
  series: Series = dataclasses.field(default_factory=Series)
  model: Model = dataclasses.field(default_factory=Model)
  loss: Loss = dataclasses.field(default_factory=Loss)

  def check(self) -> None:
    super().check()
    series, model = self.series, self.model
    if series.season > series.context:
      raise UserError(
        f"flags: --series.season={series.season} is longer than --series.context={series.context}, in which the"
        f" seasonal naive forecast finds the last season; --series.context={series.season} would do"
      )
    if series.context % model.patch:
      raise UserError(
        f"flags: --model.patch={model.patch} does not divide --series.context={series.context};"
        f" --series.context={-(-series.context // model.patch) * model.patch} would do"
      )
    if model.name == "transformer":
      model.shape().check()


def open_data(config: Config, say, workdir: Path | None) -> SeriesSplits:
  data, series = config.data, config.series
  return open_series(
    data.source,
    context=series.context,
    horizon=series.horizon,
    season=series.season,
    target=data.target,
    covariates=series.covariates,
    validation_fraction=data.validation_fraction,
    test_fraction=data.test_fraction,
  )


def build(config: Config, splits: SeriesSplits, total_steps: int) -> Task:
  return forecasting(
    make_network(config.model, config.series.horizon),
    optim.make_optimizer(config.optim.over(total_steps), total_steps),
    units=units_of(splits, config.series.season),
    loss=config.loss.name,
    micro_batches=config.optim.micro_batches,
    ema_decay=config.optim.ema_decay,
  )


EXPERIMENT = Definition(
  "forecast",
  __doc__,
  Config,
  build,
  Path(__file__).parent,
  open_data=open_data,
  samples="what comes after the series' last row, as CSV",
  sampling=Ahead,
  generate=write,
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
