"""Images with fewer or more pixels: what has no parameters, between a network's layers."""

import jax

from research.errors import UserError
from research.kernels.max_pool import max_pool
from research.kernels.upfirdn2d import upfirdn2d


def pool_2x2(x_BHWC: jax.Array, kind: str = "max") -> jax.Array:
  """Pools windows of 2×2 with stride 2; an odd last row or column is dropped. (B, H, W, C) → (B, H//2, W//2, C).

  Of equal values the first has a maximum's gradient (`kernels.max_pool`).
  """
  if kind == "max":
    return max_pool(x_BHWC, (2, 2), (2, 2))
  if kind != "avg":
    raise UserError(f"model: no pooling {kind!r} (max or avg)")
  batch, height, width, channels = x_BHWC.shape
  cropped = x_BHWC[:, : height // 2 * 2, : width // 2 * 2]
  rows = cropped.reshape(batch, height // 2, 2, width // 2, 2 * channels)
  columns = 0.5 * (rows[:, :, 0] + rows[:, :, 1])
  return 0.5 * (columns[..., :channels] + columns[..., channels:])


def resample(
  x_BHWC: jax.Array, *, up: int = 1, down: int = 1, blur: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
) -> jax.Array:
  """Enlarges images `up` times, or shrinks them, with a blur that lets nothing alias: (B, H·up/down, W·up/down, C).

  As StyleGAN2's up- and downsampling (Karras et al. 2020) and blur-pooling (Zhang 2019) do; beyond the edges are zeros.
  H and W times `up` are multiples of `down`.

  Args:
    x_BHWC: images.
    up: how many pixels become of one.
    down: how many become one.
    blur: a filter along rows and along columns, of any scale, at least as long as `up` and `down`.
  """
  numbers = [number * up / sum(blur) for number in blur]  # the zeros between pixels take a share of 1/up of the mean
  low = (len(blur) - down + up) // 2  # a pixel's zeros follow it, so its middle is behind it
  pads = (low, len(blur) - down - low)
  return upfirdn2d(x_BHWC, numbers, (up, up), (down, down), (pads, pads))
