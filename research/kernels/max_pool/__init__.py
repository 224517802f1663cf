"""Max-pooling with any window and stride, whose gradient goes to the first greatest value of a window.

Which place that is, one byte for each output, is all that the gradient needs (`cpu.py`): neither the images nor a
search, where XLA's select-and-scatter searches every window again, for 8 to 38 times as long on a CPU. On a GPU that
becomes a scatter with 16 to 34 times the temporaries (compiled for an H100, not run); a TPU has an operation for it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.choice import Form, Op
from research.kernels.max_pool import cpu, xla
from research.kernels.max_pool.windows import Windows

Pads = tuple[tuple[int, int], tuple[int, int]]

_TABLE = dict.fromkeys(("cpu", "cuda"), ("cpu",))
_FORWARD = Op("max_pool", forms={"cpu": Form(cpu.forward), "xla": Form(xla.forward)}, table=_TABLE)
_GRADIENT = Op("max_pool.gradient", forms={"cpu": Form(cpu.gradient), "xla": Form(xla.gradient)}, table=_TABLE)


def max_pool(
  x_BHWC: jax.Array,
  window: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads = ((0, 0), (0, 0)),
  *,
  form: str | None = None,
) -> jax.Array:
  """The greatest value of each window: (B, H, W, C) → (B, H', W', C), H' = (H + low + high − h) // stride + 1.

  Of equals, the first in order of rows has the gradient, as in PyTorch. A NaN is greater than any number in the values;
  the gradient then goes anywhere in its window. Differentiates in reverse mode, any number of times.

  Args:
    x_BHWC: float.
    window: (h, w), at most 255 places in all.
    strides: over rows and columns.
    pads: ((low, high) of rows, (low, high) of columns), which are less than anything; each smaller than the window.
    form: "cpu" or "xla", for both directions, instead of the choice.

  Raises:
    ValueError: another rank or dtype, pads that a window could lie in, a window larger than what it slides over, or
      more places than a byte counts.
  """
  if x_BHWC.ndim != 4 or not jnp.issubdtype(x_BHWC.dtype, jnp.floating):
    raise ValueError(f"max_pool: floats (B, H, W, C), not {x_BHWC.dtype}{list(x_BHWC.shape)}")
  windows = Windows(x_BHWC.shape[1:3], tuple(window), tuple(strides), tuple(map(tuple, pads)))
  if any(not 0 <= pad < k for k, edges in zip(window, pads, strict=True) for pad in edges):
    raise ValueError(f"max_pool: pads {pads} are not smaller than the window {window}")
  if min(windows.outputs) < 1 or windows.codes > 255:
    raise ValueError(f"max_pool: no windows {window} with strides {strides} on {x_BHWC.shape[1:3]} and pads {pads}")
  return _max_pool(x_BHWC, windows, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x_BHWC, windows, form):
  return _FORWARD(x_BHWC, windows=windows, form=form)


def _forward(x_BHWC, windows, form):
  return _max_pool(x_BHWC, windows, form), (x_BHWC, cpu.places(lax.stop_gradient(x_BHWC), windows))


def _backward(windows, form, saved, gradient_BHWC):
  return (_GRADIENT(gradient_BHWC, *saved, windows=windows, form=form),)


_max_pool.defvjp(_forward, _backward)
