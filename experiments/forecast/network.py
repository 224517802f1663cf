"""The forecaster that the flags name, and the units that its series is in."""

import dataclasses

import flax.linen as nn

from experiments.schema import flag
from research.data.series import SeriesSplits
from research.forecasting import Units
from research.models.forecast import OFFSETS, LinearForecaster, RecurrentForecaster, TransformerForecaster
from research.models.transformer_config import Config as Shape

NAMES = ("linear", "lstm", "gru", "transformer")


@dataclasses.dataclass(frozen=True)
class Model:
  """The network"""

  name: str = flag("lstm", "architecture", choices=NAMES)
  offset: str = flag("last", "of a window, taken from its values and given back to the forecast", choices=OFFSETS)
  patch: int = flag(1, "values that are one step of the network", low=1)
  layers: int = flag(1, "lstm, gru, transformer: layers", low=1)
  hidden: int = flag(64, "lstm, gru: width of the state", low=1)
  width: int = flag(64, "transformer: width", low=1)
  heads: int = flag(4, "transformer: attention heads", low=1)
  dropout: float = flag(0.0, "of what the head sees; between and inside the layers too", low=0.0, high=0.99)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))

  def shape(self) -> Shape:
    """Of the transformer."""
    return Shape(
      layers=self.layers, width=self.width, heads=self.heads, rotary=True, dropout=self.dropout, dtype=self.dtype
    )


def make_network(model: Model, horizon: int) -> nn.Module:
  """The architecture that the flags name, which forecasts `horizon` values."""
  same = {
    "horizon": horizon, "offset": model.offset, "patch": model.patch, "dropout": model.dropout, "dtype": model.dtype
  }  # fmt: skip
  if model.name == "linear":
    return LinearForecaster(**same)
  if model.name == "transformer":
    return TransformerForecaster(**same, config=model.shape())
  return RecurrentForecaster(**same, cell=model.name, depth=model.layers, hidden=model.hidden)


def units_of(splits: SeriesSplits, season: int) -> Units:
  """What brings a forecast back to the series' own unit."""
  return Units(splits.target_mean, splits.target_std, splits.seasonal_error, season)
