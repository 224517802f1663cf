"""Networks that read the last values of a series and give the next ones, all at once: linear, LSTM, GRU, transformer.

All take (B, L, C) float32, the target in channel 0, and give (B, H) float32. Axes: B batch, L context, C channels,
H horizon, P steps of the network, F features.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.text import recurrent_layer
from research.models.transformer import Transformer
from research.models.transformer_config import Config

OFFSETS = ("none", "last", "instance")
_LEAST_VARIANCE = 1e-5  # Kim et al. 2022, equation 1: of a window whose values are all the same


class Forecaster(nn.Module):
  """What they share: the window's own level, patches, dropout, and a head that begins at zero.

  Attributes:
    horizon: H.
    offset: what is taken from a window's values and given back to the forecast: "last", each channel's last value
      (NLinear, Zeng et al. 2023); "instance", its mean, and its standard deviation is divided by (RevIN without its
      affine part, Kim et al. 2022); "none".
    patch: values that are one step of the network, which divides L (PatchTST, Nie et al. 2023).
    dropout: of what the head sees.
    dtype: what is computed in; parameters stay float32.
  """

  horizon: int
  offset: str = "last"
  patch: int = 1
  dropout: float = 0.0
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x_BLC: jax.Array, *, train: bool) -> jax.Array:
    level_B1C, spread_B1C = window_level(x_BLC, self.offset)
    x_BLC = (x_BLC - level_B1C) / spread_B1C
    batch, length, channels = x_BLC.shape
    x_BPD = x_BLC.reshape(batch, length // self.patch, self.patch * channels).astype(self.dtype)
    features_BF = self.features(x_BPD, train=train)
    features_BF = layers.Dropout(self.dropout, name="dropout")(features_BF, train=train)
    zeros = nn.initializers.zeros
    head = layers.dense(self.horizon, ("embed", "classes"), dtype=self.dtype, kernel_init=zeros, name="head")
    return head(features_BF).astype(jnp.float32) * spread_B1C[:, 0, :1] + level_B1C[:, 0, :1]

  def features(self, x_BPD: jax.Array, *, train: bool) -> jax.Array:
    """(B, P, D) → (B, F)."""
    raise NotImplementedError


class LinearForecaster(Forecaster):
  """Every value of the window straight to the head (Zeng et al. 2023)."""

  @nn.compact
  def features(self, x_BPD: jax.Array, *, train: bool) -> jax.Array:
    return x_BPD.reshape(x_BPD.shape[0], -1)


class RecurrentForecaster(Forecaster):
  """LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014) layers, and the last's state at the origin.

  Attributes:
    cell: "lstm" or "gru".
    depth: layers.
    hidden: width of the state.
  """

  cell: str = "lstm"
  depth: int = 1
  hidden: int = 64

  @nn.compact
  def features(self, x_BPD: jax.Array, *, train: bool) -> jax.Array:
    for i in range(self.depth):
      if i:
        x_BPD = layers.Dropout(self.dropout, name=f"dropout_{i}")(x_BPD, train=train)
      x_BPD = recurrent_layer(
        x_BPD, None, cell=self.cell, hidden=self.hidden, bidirectional=False, dtype=self.dtype, name=f"{self.cell}_{i}",
        input_axis="embed" if i else "features",
      )  # fmt: skip
    return x_BPD[:, -1]


class TransformerForecaster(Forecaster):
  """The transformer of all the others, causal, and its values at the origin.

  Attributes:
    config: of the stack.
  """

  config: Config = dataclasses.field(default_factory=Config)

  @nn.compact
  def features(self, x_BPD: jax.Array, *, train: bool) -> jax.Array:
    config = dataclasses.replace(self.config, causal=True)
    embed = layers.dense(config.width, ("features", "embed"), dtype=config.dtype, name="embed")
    x_BPD, *_ = Transformer(config, name="transformer")(embed(x_BPD), train=train)
    return x_BPD[:, -1]


def window_level(x_BLC: jax.Array, offset: str) -> tuple[jax.Array, jax.Array]:
  """What is subtracted from a window and what it is divided by, (B, 1, C) each."""
  if offset == "last":
    return x_BLC[:, -1:], jnp.ones_like(x_BLC[:, -1:])
  if offset == "instance":
    return x_BLC.mean(axis=1, keepdims=True), jnp.sqrt(x_BLC.var(axis=1, keepdims=True) + _LEAST_VARIANCE)
  return jnp.zeros_like(x_BLC[:, -1:]), jnp.ones_like(x_BLC[:, -1:])
