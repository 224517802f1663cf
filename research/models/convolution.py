"""A 2-D convolution whose gradients are fast on a CPU. Its forward pass, and other devices, are left to XLA.

XLA's CPU backend takes two to four times as long for a convolution's weight gradient as these matrix products do.
Inside a loop (`lax.scan` over steps or micro-batches) it is worse: there its weight gradient took 20 to 100 times as
long as outside and its input gradient 4 to 70 times (jax 0.10.2 and 0.12); this costs the same inside as outside.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
PIXELS_IN_CACHE = 1024  # of the output; measured

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
  x_BHWC: jax.Array,
  kernel_HWIO: jax.Array,
  strides: tuple[int, int],
  padding: str | Sequence[tuple[int, int]],
  *,
  lhs_dilation: tuple[int, int] = (1, 1),
  rhs_dilation: tuple[int, int] = (1, 1),
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: Any = None,
) -> jax.Array:
  """`lax.conv_general_dilated` of (B, H, W, C) with (h, w, C, O), to give to `nn.Conv(conv_general_dilated=convolve)`.

  Raises ValueError for dilations, groups and other layouts, which it does not have. Differentiates in reverse mode
  only, as any `jax.custom_vjp` does.
  """
  given = lax.conv_dimension_numbers(x_BHWC.shape, kernel_HWIO.shape, dimension_numbers or DIMENSIONS)
  ours = lax.conv_dimension_numbers(x_BHWC.shape, kernel_HWIO.shape, DIMENSIONS)
  if given != ours or {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
    raise ValueError("convolve: no dilations, no groups, and NHWC only; use lax.conv_general_dilated")
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x_BHWC.shape[1:3], kernel_HWIO.shape[:2], strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  return _convolve(x_BHWC, kernel_HWIO, tuple(strides), pads, precision)


def _plain(x_BHWC, kernel_HWIO, strides, pads, precision):
  return lax.conv_general_dilated(
    x_BHWC, kernel_HWIO, strides, pads, dimension_numbers=DIMENSIONS, precision=precision
  )


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3, 4))


def _forward(x_BHWC, kernel_HWIO, strides, pads, precision):
  return _plain(x_BHWC, kernel_HWIO, strides, pads, precision), (x_BHWC, kernel_HWIO)


def _backward(strides, pads, precision, inputs, gradient_BHWO):
  x_BHWC, kernel_HWIO = inputs

  def by_xla(x_BHWC, kernel_HWIO, gradient_BHWO):
    convolve = functools.partial(_plain, strides=strides, pads=pads, precision=precision)
    return jax.vjp(convolve, x_BHWC, kernel_HWIO)[1](gradient_BHWO)

  def by_hand(x_BHWC, kernel_HWIO, gradient_BHWO):
    gradient_BHWC = input_gradient(kernel_HWIO, gradient_BHWO, x_BHWC.shape, strides, pads)
    gradient_HWIO = weight_gradient(x_BHWC, gradient_BHWO, kernel_HWIO.shape, strides, pads)
    return gradient_BHWC, gradient_HWIO.astype(kernel_HWIO.dtype)

  return lax.platform_dependent(x_BHWC, kernel_HWIO, gradient_BHWO, cpu=by_hand, default=by_xla)


_convolve.defvjp(_forward, _backward)


def input_gradient(
  kernel_HWIO: jax.Array, gradient_BHWO: jax.Array, x_shape: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> jax.Array:
  """∂loss/∂x, of `x_shape`: with stride 1 the convolution of the output's gradient with the turned kernel, otherwise
  a matrix product for each kernel position, laid where its pixels were read."""
  kernel_height, kernel_width = kernel_HWIO.shape[:2]
  if strides == (1, 1):
    turned_HWOI = lax.rev(kernel_HWIO, (0, 1)).swapaxes(2, 3)
    full = [(k - 1 - low, k - 1 - high) for k, (low, high) in zip((kernel_height, kernel_width), pads, strict=True)]
    return lax.conv_general_dilated(gradient_BHWO, turned_HWOI, (1, 1), full, dimension_numbers=DIMENSIONS)

  def lay(values, i, j):
    edges = [(0, 0, 0)]
    for axis, position in enumerate((i, j)):
      start = position - pads[axis][0]  # before the image's edge if negative; lax.pad then crops
      end = start + (values.shape[axis + 1] - 1) * strides[axis] + 1
      edges.append((start, x_shape[axis + 1] - end, strides[axis] - 1))
    return lax.pad(values, jnp.zeros((), values.dtype), [*edges, (0, 0, 0)])

  return sum(
    lay(gradient_BHWO @ kernel_HWIO[i, j].T, i, j) for i in range(kernel_height) for j in range(kernel_width)
  )


def weight_gradient(
  x_BHWC: jax.Array,
  gradient_BHWO: jax.Array,
  kernel_shape: tuple[int, ...],
  strides: tuple[int, int],
  pads: Pads,
) -> jax.Array:
  """∂loss/∂kernel, (height, width, C, O) float32: for each kernel position, shifted images times the output's gradient.

  A few examples at a time: their shifted copies are stacked, channels first, into a matrix (positions·C, pixels).
  With several devices the batch is first cut into as many groups, each summed by itself: a batch sharded over them then
  stays where it is, and only the sums travel.
  """
  kernel_height, kernel_width, channels, outputs = kernel_shape
  batch, height, width, _ = gradient_BHWO.shape
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
      for i in range(kernel_height)
      for j in range(kernel_width)
    ]
    product = jnp.matmul(
      jnp.concatenate(shifted, axis=1).reshape(groups, kernel_height * kernel_width * channels, -1),
      gradient_GPHWO.reshape(groups, -1, outputs),
      preferred_element_type=jnp.float32,
    )
    return total + product, None

  pieces = cut(jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))).transpose(0, 1, 5, 2, 3, 4)
  zeros = jnp.zeros((groups, kernel_height * kernel_width * channels, outputs), jnp.float32)
  total, _ = lax.scan(add_piece, zeros, (pieces, cut(gradient_BHWO)))
  return total.sum(axis=0).reshape(kernel_shape)
