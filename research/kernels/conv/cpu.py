"""The two gradients for XLA's CPU backend: from matrix products and stride-1 convolutions, which it does well."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.conv import xla

PIXELS_IN_CACHE = 1024  # of the output; measured

Pads = tuple[tuple[int, int], tuple[int, int]]


def input_gradient(
  gradient_BHWO: jax.Array,
  kernel_HWCO: jax.Array,
  image_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
) -> jax.Array:
  """(B, H', W', O), (h, w, C, O) → (B, H, W, C).

  A stride of s makes s² images, one for each place of a pixel in its square of s×s (its phase): each is a stride-1
  convolution with the kernel positions of that phase. They are made together, phases beside channels, and interleaved.
  """
  if strides == (1, 1):
    turned_HWOC = lax.rev(kernel_HWCO, (0, 1)).swapaxes(2, 3)
    full = [(k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel_HWCO.shape[:2], pads, strict=True)]
    return xla.convolution(gradient_BHWO, turned_HWOC, (1, 1), full, precision)

  taps, kernel_hkwkCO = _phases(kernel_HWCO, strides)  # (taps, stride, taps, stride, C, O)
  batch, _, _, outputs = gradient_BHWO.shape
  channels = kernel_HWCO.shape[2]
  stacked = math.prod(strides) * channels  # phases beside channels
  rows, columns = (h + k - 1 for h, k in zip(gradient_BHWO.shape[1:3], taps, strict=True))
  if stacked < outputs:  # lay the products over each other: fewer values than the patches of a convolution
    kernel_hwOP = kernel_hkwkCO.transpose(0, 2, 5, 1, 3, 4).reshape(*taps, outputs, stacked)
    product_BhwP = [
      [jnp.matmul(gradient_BHWO, kernel_hwOP[i, j], precision=precision) for j in range(taps[1])]
      for i in range(taps[0])
    ]
    phases = sum(
      jnp.pad(product_BhwP[i][j], ((0, 0), (i, taps[0] - 1 - i), (j, taps[1] - 1 - j), (0, 0)))
      for i in range(taps[0])
      for j in range(taps[1])
    )
  else:
    turned = lax.rev(kernel_hkwkCO, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(*taps, outputs, stacked)
    phases = xla.convolution(gradient_BHWO, turned, (1, 1), [(k - 1, k - 1) for k in taps], precision)
  squares = phases.reshape(batch, rows, columns, *strides, channels).transpose(0, 1, 3, 2, 4, 5)
  whole_BHWC = squares.reshape(batch, rows * strides[0], columns * strides[1], channels)
  sizes = zip(image_size, whole_BHWC.shape[1:3], pads, strict=True)
  cut = [(-low, size + low - have, 0) for size, have, (low, _) in sizes]
  return lax.pad(whole_BHWC, jnp.zeros((), whole_BHWC.dtype), [(0, 0, 0), *cut, (0, 0, 0)])


def weight_gradient(
  x_BHWC: jax.Array,
  gradient_BHWO: jax.Array,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
) -> jax.Array:
  """(B, H, W, C), (B, H', W', O) → (h, w, C, O): for each kernel position, shifted images times the output's gradient.

  A few examples at a time: their shifted copies are stacked, channels first, into a matrix (positions·C, pixels).
  With several devices the batch is first cut into as many groups, each summed by itself: a batch sharded over them then
  stays where it is, and only the sums travel. The sum is float32 and the result has x's dtype.
  """
  channels, dtype = x_BHWC.shape[3], x_BHWC.dtype
  x_BHWC = jnp.pad(x_BHWC, ((0, 0), *(_at_least_zero(edges) for edges in pads), (0, 0)))
  x_BHWC = x_BHWC[:, max(0, -pads[0][0]) :, max(0, -pads[1][0]) :]
  if strides != (1, 1) and all(k % s == 0 for k, s in zip(kernel_size, strides, strict=True)):
    # Squares of pixels become channels, and the stride 1: fewer and longer runs to copy.
    taps = tuple(k // s for k, s in zip(kernel_size, strides, strict=True))
    kernel = _shifted_products(_squares(x_BHWC, strides), gradient_BHWO, taps, (1, 1), precision)
    kernel = kernel.reshape(*taps, *strides, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(*kernel_size, channels, -1).astype(dtype)
  return _shifted_products(x_BHWC, gradient_BHWO, kernel_size, strides, precision).astype(dtype)


def _shifted_products(x_BHWC, gradient_BHWO, kernel_size, strides, precision) -> jax.Array:
  batch, height, width, outputs = gradient_BHWO.shape
  positions, channels = math.prod(kernel_size), x_BHWC.shape[3]
  groups = math.gcd(batch, jax.device_count())
  piece = max(1, min(batch // groups, PIXELS_IN_CACHE // (height * width)))
  while batch // groups % piece:
    piece -= 1

  def cut(x_BHWC: jax.Array) -> jax.Array:
    """(B, H, W, C) → (pieces, groups, examples of a piece, H, W, C)."""
    return x_BHWC.reshape(groups, -1, piece, *x_BHWC.shape[1:]).swapaxes(0, 1)

  def add_piece(total, numbered):
    x_GCPHW, gradient_GPHWO = numbered
    shifted = [
      x_GCPHW[..., i :: strides[0], j :: strides[1]][..., :height, :width]
      for i in range(kernel_size[0])
      for j in range(kernel_size[1])
    ]
    product = jnp.matmul(
      jnp.concatenate(shifted, axis=1).reshape(groups, positions * channels, -1),
      gradient_GPHWO.reshape(groups, -1, outputs),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    return total + product, None

  pieces = cut(x_BHWC).transpose(0, 1, 5, 2, 3, 4)
  zeros = jnp.zeros((groups, positions * channels, outputs), jnp.float32)
  total, _ = lax.scan(add_piece, zeros, (pieces, cut(gradient_BHWO)))
  return total.sum(axis=0).reshape(*kernel_size, channels, outputs)


def _phases(kernel_HWCO: jax.Array, strides: tuple[int, int]) -> tuple[tuple[int, int], jax.Array]:
  """(h, w, C, O) → the taps of a phase, and the kernel as (taps, stride, taps, stride, C, O), filled with zeros."""
  height, width, *channels = kernel_HWCO.shape
  taps = tuple(-(-k // s) for k, s in zip((height, width), strides, strict=True))
  more = [(0, k * s - have) for k, s, have in zip(taps, strides, (height, width), strict=True)]
  return taps, jnp.pad(kernel_HWCO, (*more, (0, 0), (0, 0))).reshape(
    taps[0], strides[0], taps[1], strides[1], *channels
  )


def _squares(x_BHWC: jax.Array, strides: tuple[int, int]) -> jax.Array:
  """(B, H, W, C) → (B, H // s, W // t, s·t·C); rows and columns left over are not read by any window."""
  batch, height, width, channels = x_BHWC.shape
  rows, columns = height // strides[0], width // strides[1]
  x_BHWC = x_BHWC[:, : rows * strides[0], : columns * strides[1]]
  squares = x_BHWC.reshape(batch, rows, strides[0], columns, strides[1], channels).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(batch, rows, columns, -1)


def _at_least_zero(edges: tuple[int, int]) -> tuple[int, int]:
  return max(0, edges[0]), max(0, edges[1])
