"""On a CPU: shifted images times a number for each phase, added up in one pass, or in two (rows and columns) for a
filter that is an outer product. No zero that lies between pixels is read. Sums are float32 from first to last."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.kernels.upfirdn2d.resampling import Resampling


def run(x_BHWC: jax.Array, *, how: Resampling) -> jax.Array:
  """(B, H, W, C) → (B, H', W', C)."""
  y_BHWC = x_BHWC.astype(jnp.float32)
  for each in how.passes:
    y_BHWC = _pass(y_BHWC, each)
  return y_BHWC.astype(x_BHWC.dtype)


def _pass(x_BHWC: jax.Array, how: Resampling) -> jax.Array:
  batch, *image, channels = x_BHWC.shape
  rows, columns = how.phases
  counts = [math.ceil(size / axis.phases) for size, axis in zip(how.outputs, how.phases, strict=True)]  # of a phase
  edges = []
  for axis, size, count in zip(how.phases, image, counts, strict=True):
    read = axis.first + axis.taps + (count - 1) * axis.stride
    edges.append((-axis.first, read - size, 0))
  padded_BHWC = lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
  filter_HW = np.pad(how.taps, ((0, 1), (0, 1))).astype(np.float32)  # entry −1 is 0
  total = jnp.zeros((batch, counts[0], rows.phases, counts[1], columns.phases, channels), jnp.float32)
  for p in range(rows.taps):
    for q in range(columns.taps):
      numbers_RS = filter_HW[np.ix_(rows.numbers[p], columns.numbers[q])]
      if numbers_RS.any():
        last = (p + (counts[0] - 1) * rows.stride + 1, q + (counts[1] - 1) * columns.stride + 1)
        step = (1, rows.stride, columns.stride, 1)
        read_BhwC = lax.slice(padded_BHWC, (0, p, q, 0), (batch, *last, channels), step)
        number = jnp.asarray(numbers_RS).reshape(1, 1, rows.phases, 1, columns.phases, 1)
        total += read_BhwC[:, :, None, :, None] * number
  y_BHWC = total.reshape(batch, counts[0] * rows.phases, counts[1] * columns.phases, channels)
  return y_BHWC[:, : how.outputs[0], : how.outputs[1]]
