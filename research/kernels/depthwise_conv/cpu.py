"""On a CPU: shifted images times a number a channel, added up in one pass; channels lie side by side, so that each
step is a few vector instructions. Sums are float32, whatever the dtype."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PIXELS_IN_CACHE = 1024  # of the output; measured

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolution(
  x_BHWC: jax.Array, kernel_HWC: jax.Array, *, strides: tuple[int, int], pads: Pads, precision: Any = None
) -> jax.Array:
  """(B, H, W, C), (h, w, C) → (B, H', W', C)."""
  del precision
  size = _output_size(x_BHWC.shape[1:3], kernel_HWC.shape[:2], strides, pads)
  padded_BHWC, kernel_HWC = _padded(x_BHWC, pads), kernel_HWC.astype(jnp.float32)
  total = sum(
    _shifted(padded_BHWC, (i, j), size, strides) * kernel_HWC[i, j].reshape(1, 1, 1, -1)
    for i in range(kernel_HWC.shape[0])
    for j in range(kernel_HWC.shape[1])
  )
  return total.astype(x_BHWC.dtype)


def input_gradient(
  gradient_BHWC: jax.Array,
  kernel_HWC: jax.Array,
  *,
  image_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any = None,
) -> jax.Array:
  """(B, H', W', C), (h, w, C) → (B, H, W, C).

  In squares of stride × stride pixels: each tap of a square multiplies one output's gradient with the kernel's numbers
  for the square's pixels. No zeros are laid between the gradient's pixels.
  """
  del precision
  dtype, (batch, rows, columns, channels) = gradient_BHWC.dtype, gradient_BHWC.shape
  if strides == (1, 1):
    turned = lax.rev(kernel_HWC, (0, 1))
    full = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel_HWC.shape[:2], pads, strict=True))
    return convolution(gradient_BHWC, turned, strides=(1, 1), pads=full)
  taps = tuple(math.ceil(k / s) for k, s in zip(kernel_HWC.shape[:2], strides, strict=True))
  more = [(0, tap * s - k) for tap, s, k in zip(taps, strides, kernel_HWC.shape[:2], strict=True)]
  filled = jnp.pad(kernel_HWC.astype(jnp.float32), (*more, (0, 0)))
  kernel_hSwTC = filled.reshape(taps[0], strides[0], taps[1], strides[1], channels)
  padded_BHWC = _padded(gradient_BHWC, tuple((tap - 1, tap - 1) for tap in taps))
  squares = (rows + taps[0] - 1, columns + taps[1] - 1)
  total = sum(
    _shifted(padded_BHWC, (taps[0] - 1 - i, taps[1] - 1 - j), squares, (1, 1))[:, :, None, :, None]
    * kernel_hSwTC[i, :, j].reshape(1, 1, strides[0], 1, strides[1], channels)
    for i in range(taps[0])
    for j in range(taps[1])
  )
  whole = total.astype(dtype).reshape(batch, squares[0] * strides[0], squares[1] * strides[1], channels)
  sizes = zip(image_size, whole.shape[1:3], pads, strict=True)
  cut = [(-low, size + low - have, 0) for size, have, (low, _) in sizes]
  return lax.pad(whole, jnp.zeros((), dtype), [(0, 0, 0), *cut, (0, 0, 0)])


def weight_gradient(
  x_BHWC: jax.Array,
  gradient_BHWC: jax.Array,
  *,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any = None,
) -> jax.Array:
  """(B, H, W, C), (B, H', W', C) → (h, w, C): for each kernel position, the sum of shifted images times the gradient.

  A few examples at a time, so that they stay in the cache from one position to the next. With several devices the batch
  is first cut into as many groups, each summed by itself: a batch sharded over them then stays where it is.
  """
  del precision
  batch, rows, columns, channels = gradient_BHWC.shape
  groups = math.gcd(batch, jax.device_count())
  piece = max(1, min(batch // groups, PIXELS_IN_CACHE // (rows * columns)))
  while batch // groups % piece:
    piece -= 1

  def cut(x_SBHWC: jax.Array) -> jax.Array:
    """(S, B, H, W, C) → (pieces, S, groups, examples of a piece, H, W, C)."""
    first, *image = x_SBHWC.shape[0], *x_SBHWC.shape[2:]
    return x_SBHWC.reshape(first, groups, -1, piece, *image).transpose(2, 0, 1, 3, 4, 5, 6)

  # Which pixel of its square a kernel position reads, in which square.
  positions = [(i % strides[0] * strides[1] + j % strides[1], i // strides[0], j // strides[1])
               for i in range(kernel_size[0]) for j in range(kernel_size[1])]  # fmt: skip

  def add_piece(total_KGC, numbered):
    x_SGPHWC, gradient_1GPHWC = numbered

    def of(position: jax.Array) -> jax.Array:
      zero = jnp.zeros((), jnp.int32)
      start = (position[0], zero, zero, position[1], position[2], zero)
      read = lax.dynamic_slice(x_SGPHWC, start, gradient_1GPHWC.shape)
      return (read.astype(jnp.float32) * gradient_1GPHWC.astype(jnp.float32)).sum(axis=(0, 2, 3, 4))

    return total_KGC + lax.map(of, jnp.asarray(positions, jnp.int32)), None

  taps = tuple(math.ceil(k / s) for k, s in zip(kernel_size, strides, strict=True))
  squares = _squares(x_BHWC, strides, pads, (rows + taps[0] - 1, columns + taps[1] - 1))
  zeros = jnp.zeros((len(positions), groups, channels), jnp.float32)
  total_KGC, _ = lax.scan(add_piece, zeros, (cut(squares), cut(gradient_BHWC[None])))
  return total_KGC.sum(axis=1).reshape(*kernel_size, channels).astype(x_BHWC.dtype)


def _output_size(image_size, kernel_size, strides, pads) -> tuple[int, int]:
  """(H', W')."""
  rows, columns = (
    (size + low + high - k) // s + 1
    for size, k, s, (low, high) in zip(image_size, kernel_size, strides, pads, strict=True)
  )
  return rows, columns


def _shifted(x_BHWC: jax.Array, first: tuple[int, int], size: tuple[int, int], strides: tuple[int, int]) -> jax.Array:
  """Every stride-th pixel from `first` on, (B, *size, C)."""
  last = (i + (n - 1) * s + 1 for i, n, s in zip(first, size, strides, strict=True))
  limits = (x_BHWC.shape[0], *last, x_BHWC.shape[3])
  return lax.slice(x_BHWC, (0, *first, 0), limits, (1, *strides, 1))


def _padded(x_BHWC: jax.Array, pads: Pads) -> jax.Array:
  """In float32, with zeros around it."""
  edges = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
  return lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), edges).astype(jnp.float32)


def _squares(x_BHWC: jax.Array, strides: tuple[int, int], pads: Pads, count: tuple[int, int]) -> jax.Array:
  """(B, H, W, C) → (pixels of a square of strides, B, *count, C) of the padded images, filled or cut at the far end."""
  sizes = zip(x_BHWC.shape[1:3], strides, pads, count, strict=True)
  edges = [(low, n * s - size - low, 0) for size, s, (low, _), n in sizes]
  padded_BHWC = lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
  batch, channels = x_BHWC.shape[0], x_BHWC.shape[3]
  split = padded_BHWC.reshape(batch, count[0], strides[0], count[1], strides[1], channels)
  return split.transpose(2, 4, 0, 1, 3, 5).reshape(-1, batch, *count, channels)
