"""By comparing shifted images: no search, no scatter. Nothing in it is a CPU's own; XLA fuses each direction into one
pass over the images.

bfloat16 is compared and summed in float32: XLA's CPU backend rounds after every bfloat16 operation, at two to four
times the time, and pixels in several windows add up more exactly.
"""

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels import once
from research.kernels.max_pool.windows import Windows

NOWHERE = 255  # no place of a window


def forward(x_BHWC: jax.Array, *, windows: Windows) -> jax.Array:
  """→ (B, H', W', C)."""
  return _greatest(x_BHWC, windows)[0].astype(x_BHWC.dtype)


def places(x_BHWC: jax.Array, windows: Windows) -> jax.Array:
  """→ uint8 (B, H', W', C): the code of each window's first greatest value."""
  return once.computed(lambda x_BHWC: _greatest(x_BHWC, windows)[1], x_BHWC)


def _greatest(x_BHWC: jax.Array, windows: Windows) -> tuple[jax.Array, jax.Array]:
  (s, t), (rows, columns), (batch, *_, channels) = windows.strides, windows.outputs, x_BHWC.shape
  wide_BHWC = x_BHWC.astype(_wide(x_BHWC.dtype))
  edges = [(0, 0, 0), *((low, high, 0) for low, high in windows.pads), (0, 0, 0)]
  wide_BHWC = lax.pad(wide_BHWC, jnp.asarray(-jnp.inf, wide_BHWC.dtype), edges)
  greatest = place = None
  for p in range(windows.window[0]):
    for q in range(windows.window[1]):
      limits = (batch, p + (rows - 1) * s + 1, q + (columns - 1) * t + 1, channels)
      value = lax.slice(wide_BHWC, (0, p, q, 0), limits, (1, s, t, 1))
      if greatest is None:
        greatest, place = value, jnp.zeros(value.shape, jnp.uint8)
      else:
        place = jnp.where(value > greatest, jnp.uint8(windows.code(p, q)), place)
        greatest = jnp.maximum(greatest, value)
  return greatest, place


def gradient(gradient_BHWC: jax.Array, x_BHWC: jax.Array, place: jax.Array, *, windows: Windows) -> jax.Array:
  """→ (B, H, W, C). Pixels in their squares of stride × stride: each tap asks its window if the pixel is its place."""
  (rows, columns), (s, t), (taps, taps_across) = windows.outputs, windows.strides, windows.taps
  batch, channels, dtype = x_BHWC.shape[0], x_BHWC.shape[3], x_BHWC.dtype
  wide_BHWC = gradient_BHWC.astype(_wide(dtype))
  shape = (1, 1, s, 1, t, 1)
  corner = lax.broadcasted_iota(jnp.uint8, shape, 2) * jnp.uint8(windows.code(1, 0))
  corner += lax.broadcasted_iota(jnp.uint8, shape, 4)
  total = None
  for p in range(taps):
    for q in range(taps_across):
      edges = [(0, 0, 0), (p, taps - 1 - p, 0), (q, taps_across - 1 - q, 0), (0, 0, 0)]
      g = lax.pad(wide_BHWC, jnp.zeros((), wide_BHWC.dtype), edges)
      at = lax.pad(place, jnp.uint8(NOWHERE), edges)
      is_place = at[:, :, None, :, None] == corner + jnp.uint8(windows.code(p * s, q * t))
      share = jnp.where(is_place, g[:, :, None, :, None], jnp.zeros((), g.dtype))
      total = share if total is None else total + share
  whole = total.astype(dtype).reshape(batch, (rows + taps - 1) * s, (columns + taps_across - 1) * t, channels)
  sizes = zip(windows.image, whole.shape[1:3], windows.pads, strict=True)
  cut = [(-low, size + low - have, 0) for size, have, (low, _) in sizes]
  return lax.pad(whole, jnp.zeros((), dtype), [(0, 0, 0), *cut, (0, 0, 0)])


def _wide(dtype: jnp.dtype) -> jnp.dtype:
  return jnp.dtype("float32") if dtype.itemsize < 4 else dtype
