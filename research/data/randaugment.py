"""RandAugment (Cubuk et al. 2020): a few random operations of one strength on each image, inside the compiled step.

The operations are Pillow's, on whole pixel values 0..255 as float32, image by image: x_HWC with C of 1 or 3.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.data.transforms import Transform
from research.parallel.collectives import rows
from research.task import Batch, Key

MOST = 10.0  # the greatest strength, to which the ranges below belong (their table 6 and code)
FILL = 128.0  # what a turned or moved image uncovers


def randaugment(count: int, strength: float) -> Transform:
  """`count` operations drawn anew for each uint8 image, at `strength` in 0..10; in half of the cases the other way."""
  operations = tuple(functools.partial(operation, level=strength / MOST) for operation in OPERATIONS.values())

  def one(x_HWC: jax.Array, key: Key) -> jax.Array:
    for place in range(count):
      which_key, sign_key = jax.random.split(jax.random.fold_in(key, place))
      which = jax.random.randint(which_key, (), 0, len(operations))
      sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
      x_HWC = jax.lax.switch(which, operations, x_HWC, sign)
    return x_HWC

  def apply(batch: Batch, key: Key) -> Batch:
    x_BHWC = batch["image"]
    keys_B = rows(lambda count: jax.random.split(key, count), x_BHWC.shape[0])
    altered_BHWC = jax.vmap(one)(x_BHWC.astype(jnp.float32), keys_B)
    return {**batch, "image": altered_BHWC.astype(x_BHWC.dtype)}

  return apply


def identity(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  del sign, level
  return x_HWC


def autocontrast(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Stretches each channel over the whole range."""
  del sign, level
  low, high = x_HWC.min(axis=(0, 1), keepdims=True), x_HWC.max(axis=(0, 1), keepdims=True)
  scale = 255.0 / jnp.maximum(high - low, 1.0)
  return jnp.where(high > low, jnp.floor((x_HWC - low) * scale + 1e-3), x_HWC)


def equalize(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Makes each channel's histogram even."""
  del sign, level

  def channel(x_HW: jax.Array) -> jax.Array:
    values_HW = x_HW.astype(jnp.int32)
    histogram_V = jnp.zeros(256, jnp.int32).at[values_HW].add(1)
    last = jnp.where(histogram_V > 0, jnp.arange(256), 0).max()
    step = (histogram_V.sum() - histogram_V[last]) // 255
    before_V = jnp.cumsum(histogram_V) - histogram_V
    table_V = jnp.minimum((before_V + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table_V[values_HW].astype(jnp.float32), x_HW)

  return jax.vmap(channel, in_axes=-1, out_axes=-1)(x_HWC)


def solarize(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Inverts what is brighter than a threshold."""
  del sign
  return jnp.where(x_HWC < 256.0 * (1.0 - level), x_HWC, 255.0 - x_HWC)


def posterize(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Leaves 8 to 4 bits of each value."""
  del sign
  step = 2.0 ** int(4 * level)
  return jnp.floor(x_HWC / step) * step


def color(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Between grey and twice the colour."""
  return _blend(jnp.broadcast_to(_grey(x_HWC), x_HWC.shape), x_HWC, sign, level)


def contrast(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Between the mean's grey and twice the contrast."""
  mean = jnp.floor(_grey(x_HWC).mean() + 0.5)
  return _blend(jnp.full_like(x_HWC, 1.0) * mean, x_HWC, sign, level)


def brightness(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Between black and twice the brightness."""
  return _blend(jnp.zeros_like(x_HWC), x_HWC, sign, level)


def sharpness(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """Between smoothed by (1 1 1, 1 5 1, 1 1 1) / 13 and twice the sharpness; the border stays."""
  height, width = x_HWC.shape[:2]
  if min(height, width) < 3:
    return x_HWC
  inner = slice(1, -1)
  windows = [x_HWC[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
  smooth = jnp.floor((sum(windows) + 4.0 * x_HWC[inner, inner]) / 13.0 + 0.5)
  return _blend(x_HWC.at[inner, inner].set(smooth), x_HWC, sign, level)


def rotate(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """About the centre, by up to 30 degrees."""
  angle = sign * (level * jnp.pi / 6)
  return _moved(x_HWC, jnp.cos(angle), -jnp.sin(angle), jnp.sin(angle), jnp.cos(angle), 0.0, 0.0)


def shear_x(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  return _moved(x_HWC, 1.0, sign * (0.3 * level), 0.0, 1.0, 0.0, 0.0)


def shear_y(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  return _moved(x_HWC, 1.0, 0.0, sign * (0.3 * level), 1.0, 0.0, 0.0)


def translate_x(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  """By up to 100 of 331 pixels' share of the side, as in the paper's range for ImageNet."""
  return _moved(x_HWC, 1.0, 0.0, 0.0, 1.0, sign * (level * 100 / 331 * x_HWC.shape[1]), 0.0)


def translate_y(x_HWC: jax.Array, sign: jax.Array, *, level: float) -> jax.Array:
  return _moved(x_HWC, 1.0, 0.0, 0.0, 1.0, 0.0, sign * (level * 100 / 331 * x_HWC.shape[0]))


OPERATIONS: dict[str, Callable[..., jax.Array]] = {
  operation.__name__: operation
  for operation in (
    identity, autocontrast, equalize, rotate, solarize, color, posterize, contrast, brightness, sharpness,
    shear_x, shear_y, translate_x, translate_y,
  )
}  # fmt: skip


def _grey(x_HWC: jax.Array) -> jax.Array:
  """Luminance (ITU-R 601), (H, W, 1), rounded."""
  if x_HWC.shape[-1] != 3:
    return x_HWC
  weights_C = jnp.asarray([0.299, 0.587, 0.114], jnp.float32)
  return jnp.floor((x_HWC * weights_C.reshape(1, 1, -1)).sum(axis=-1, keepdims=True) + 0.5)


def _blend(far_HWC: jax.Array, x_HWC: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """From `far` through `x` and beyond it: a factor of 1 ± 0.9·level."""
  factor = 1.0 + sign * (0.9 * level)
  return jnp.floor(jnp.clip(far_HWC + factor * (x_HWC - far_HWC), 0.0, 255.0))


def _moved(x_HWC: jax.Array, a, b, c, d, right, down) -> jax.Array:
  """The nearest pixel of where each pixel comes from: (x, y) ← (a·x + b·y + right, c·x + d·y + down), about the
  centre."""
  height, width = x_HWC.shape[:2]
  y_HW, x_HW = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
    jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
    indexing="ij",
  )
  column_HW = jnp.round(a * x_HW + b * y_HW + right + (width - 1) / 2).astype(jnp.int32)
  row_HW = jnp.round(c * x_HW + d * y_HW + down + (height - 1) / 2).astype(jnp.int32)
  inside_HW1 = ((column_HW >= 0) & (column_HW < width) & (row_HW >= 0) & (row_HW < height))[..., None]
  taken_HWC = x_HWC[jnp.clip(row_HW, 0, height - 1), jnp.clip(column_HW, 0, width - 1)]
  return jnp.where(inside_HW1, taken_HWC, FILL)
