"""Images as rows of patches: the vision transformer (Dosovitskiy et al. 2021), and its plain form (Beyer et al. 2022).

Axes: B batch, H height, W width, C channels, L patches (and a class token before them), D width.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers
from research.models.transformer import Transformer
from research.models.transformer_config import Config

POOLINGS = ("class", "mean")
POSITIONS = ("learned", "sinusoidal")


class ViT(nn.Module):
  """(B, H, W, C) float → logits (B, classes) float32.

  Attributes:
    config: of the stack, which sees all patches at once.
    classes: width of the head, which begins at zero.
    patch: side of a patch in pixels; it divides both sides of the image.
    pooling: what the head sees: "class", the first, learned token's values, or "mean", of all patches'.
    positions: "learned", or "sinusoidal" in both directions (Beyer et al. 2022).
  """

  config: Config
  classes: int
  patch: int
  pooling: str = "class"
  positions: str = "learned"

  @nn.compact
  def __call__(self, image_BHWC: jax.Array, *, train: bool) -> jax.Array:
    config = dataclasses.replace(self.config, causal=False)
    named = nn.with_logical_partitioning
    normal = nn.initializers.normal(0.02)
    patches_BLP = patches(image_BHWC.astype(config.dtype), self.patch)
    embed = layers.dense(config.width, ("features", "embed"), dtype=config.dtype, name="embed")
    x_BLD = embed(patches_BLP)
    if self.pooling == "class":
      token_11D = self.param("class_token", named(nn.initializers.zeros, (None, None, "embed")), (1, 1, config.width))
      first_B1D = jnp.broadcast_to(token_11D.astype(x_BLD.dtype), (x_BLD.shape[0], 1, config.width))
      x_BLD = jnp.concatenate([first_B1D, x_BLD], axis=1)
    if self.positions == "learned":
      shape = (1, x_BLD.shape[1], config.width)
      x_BLD = x_BLD + self.param("positions", named(normal, (None, None, "embed")), shape).astype(x_BLD.dtype)
    else:
      height, width = (side // self.patch for side in image_BHWC.shape[1:3])
      places_1LD = grid_sinusoids(height, width, config.width)[None].astype(x_BLD.dtype)
      x_BLD = x_BLD + jnp.pad(places_1LD, ((0, 0), (x_BLD.shape[1] - places_1LD.shape[1], 0), (0, 0)))
    x_BLD = layers.Dropout(config.dropout, name="dropout")(x_BLD, train=train)
    x_BLD, *_ = Transformer(config, name="transformer")(x_BLD, train=train)
    pooled_BD = x_BLD[:, 0] if self.pooling == "class" else x_BLD.mean(axis=1)
    if config.width_multiplier != 1.0:
      pooled_BD = pooled_BD / config.width_multiplier
    zeros = nn.initializers.zeros
    head = layers.dense(self.classes, ("embed", "classes"), dtype=config.dtype, kernel_init=zeros, name="head")
    return head(pooled_BD).astype(jnp.float32)

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError for an image that patches do not fill, and a width that has no positions in two directions."""
    height, width = image_shape[:2]
    if height % self.patch or width % self.patch:
      common = math.gcd(height, width)
      fitting = [side for side in range(1, common + 1) if common % side == 0]
      nearest = min(fitting, key=lambda side: abs(side - self.patch))
      raise UserError(f"model: patches of {self.patch} do not fill images of {height}×{width}; {nearest} would")
    if self.positions == "sinusoidal" and self.config.width % 4:
      raise UserError(f"model: sinusoidal positions need a width that 4 divides, not {self.config.width}")


def patches(image_BHWC: jax.Array, side: int) -> jax.Array:
  """(B, H, W, C) → (B, H/side · W/side, side·side·C), rows first: a convolution of stride `side` as a product."""
  batch, height, width, channels = image_BHWC.shape
  rows, columns = height // side, width // side
  cut = image_BHWC.reshape(batch, rows, side, columns, side, channels)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, side * side * channels)


def grid_sinusoids(height: int, width: int, features: int) -> jax.Array:
  """Sines and cosines of the column, then of the row, at D/4 wavelengths from 2π to 10000·2π: (height·width, D)."""
  quarter = features // 4
  omega = 10_000.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / max(quarter - 1, 1))
  row_L = jnp.repeat(jnp.arange(height, dtype=jnp.float32), width)
  column_L = jnp.tile(jnp.arange(width, dtype=jnp.float32), height)
  angles = [place_L[:, None] * omega[None] for place_L in (column_L, row_L)]
  return jnp.concatenate([wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)], axis=1)
