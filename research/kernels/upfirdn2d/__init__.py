"""Zeros laid between pixels, a fixed filter, and every few pixels kept: how images are resampled without aliasing.

As in Karras et al. 2020 (StyleGAN2, appendix B) and Zhang 2019 ("Making convolutional networks shift-invariant again").
Its gradient is the same operation with `up` and `down` exchanged and the filter turned, so any order of derivative is.
XLA's CPU backend multiplies all the zeros, a channel at a time: 15 to over 300 times as long as `cpu.py`, which reads
only pixels (jax 0.10.2 and 0.12).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.kernels.choice import Form, Op
from research.kernels.upfirdn2d import cpu, xla
from research.kernels.upfirdn2d.resampling import Resampling

MOST_SLICES = 144  # of a pass on a CPU, which compiles as long


def _few_slices(shapes: Sequence[tuple], dtypes: Any, platform: str, *, how: Resampling) -> bool:
  del shapes, dtypes, platform
  return all(math.prod(axis.taps for axis in each.phases) <= MOST_SLICES for each in how.passes)


_UPFIRDN2D = Op(
  "upfirdn2d", forms={"cpu": Form(cpu.run, worth=_few_slices), "xla": Form(xla.run)}, table={"cpu": ("cpu",)}
)


def upfirdn2d(
  x_BHWC: jax.Array,
  filter: Any,
  up: tuple[int, int] = (1, 1),
  down: tuple[int, int] = (1, 1),
  pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
  *,
  form: str | None = None,
) -> jax.Array:
  """(B, H, W, C) → (B, H', W', C), H' = (H · up + low + high − h) // down + 1.

  Each pixel is followed by up − 1 zeros; the result is padded, convolved with the filter (which a convolution turns),
  and every `down`-th pixel is kept, from the first. Sums are float32 on a CPU. Differentiates in reverse mode, any
  number of times; the filter is no variable.

  Args:
    x_BHWC: float32 or bfloat16.
    filter: numbers (h, w), or (h,) for their outer product with themselves, which is two passes and so much less work.
    up: over rows and columns.
    down: the same.
    pads: ((low, high) of rows, (low, high) of columns), zeros; negative: cut.
    form: "cpu" or "xla", instead of the choice.

  Raises:
    ValueError: a filter of another rank, or nothing left.
  """
  numbers = np.asarray(filter, np.float64)
  if numbers.ndim not in (1, 2) or numbers.size == 0:
    raise ValueError(f"upfirdn2d: a filter of shape {numbers.shape}; (h,) or (h, w)")
  static = tuple(numbers.tolist()) if numbers.ndim == 1 else tuple(map(tuple, numbers.tolist()))
  how = Resampling(x_BHWC.shape[1:3], static, tuple(up), tuple(down), tuple(map(tuple, pads)))
  if min(*how.up, *how.down) < 1 or min(how.outputs) < 1:
    raise ValueError(f"upfirdn2d: nothing is left of {x_BHWC.shape[1:3]}, up {up}, down {down}, pads {pads}")
  return _upfirdn2d(x_BHWC, how, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _upfirdn2d(x_BHWC, how, form):
  return _UPFIRDN2D(x_BHWC, how=how, form=form)


_upfirdn2d.defvjp(
  lambda x_BHWC, how, form: (_upfirdn2d(x_BHWC, how, form), None),
  lambda how, form, _, gradient_BHWC: (_upfirdn2d(gradient_BHWC, how.gradient, form),),
)
