"""A convolution of each channel with a kernel of its own (Howard et al. 2017, MobileNets, section 3.1).

Its sums are over the kernel's positions alone, so there is no product of matrices in it. XLA's CPU backend, which looks
for one, takes 15 to 300 times as long as shifted multiply-adds (`cpu.py`) for the convolution and its input gradient,
and 2 to 12 times for the weight gradient (jax 0.10.2 and 0.12). As in `kernels.conv`
the three operations are one trilinear form, and each one's derivative is made of the other two:

| operation | open argument | its own derivatives |
| --- | --- | --- |
| `depthwise_conv(x, kernel)` | g | `input_gradient`, `weight_gradient` |
| `input_gradient(g, kernel)` | x | `depthwise_conv`, `weight_gradient` |
| `weight_gradient(x, g)` | kernel | `input_gradient`, `depthwise_conv` |
"""

import math
from collections.abc import Sequence
from typing import Any

import jax

from research.kernels.choice import Form, Op
from research.kernels.depthwise_conv import cpu, xla

Pads = tuple[tuple[int, int], tuple[int, int]]

MOST_POSITIONS = 121  # of a kernel, 11×11: the forms for a CPU are that many slices, and compile as long
FEWEST_CHANNELS = 16  # for the weight gradient: with less there is too little side by side


def _few_positions(shapes: Sequence[tuple], dtypes: Any, platform: str, **options: Any) -> bool:
  del dtypes, platform, options
  return math.prod(shapes[1][:2]) <= MOST_POSITIONS


def _many_channels(shapes: Sequence[tuple], dtypes: Any, platform: str, **options: Any) -> bool:
  del dtypes, platform, options
  return shapes[0][3] >= FEWEST_CHANNELS


_TABLE = {"cpu": ("cpu",)}
_CONVOLUTION = Op(
  "depthwise_conv",
  forms={"cpu": Form(cpu.convolution, worth=_few_positions), "xla": Form(xla.convolution)},
  table=_TABLE,
)
_INPUT_GRADIENT = Op(
  "depthwise_conv.input_gradient",
  forms={"cpu": Form(cpu.input_gradient, worth=_few_positions), "xla": Form(xla.input_gradient)},
  table=_TABLE,
)
_WEIGHT_GRADIENT = Op(
  "depthwise_conv.weight_gradient",
  forms={"cpu": Form(cpu.weight_gradient, worth=_many_channels), "xla": Form(xla.weight_gradient)},
  table=_TABLE,
)


def _depthwise_conv(x_BHWC: jax.Array, kernel_HWC: jax.Array, strides: tuple[int, int], pads: Pads, precision: Any):
  """(B, H, W, C) with (h, w, C) → (B, H', W', C), H' = (H + low + high − h) // stride + 1.

  Sums are float32 on a CPU. Differentiates in reverse mode, any number of times.

  Args:
    x_BHWC: images.
    kernel_HWC: of the same dtype.
    strides: over rows and columns.
    pads: ((low, high) of rows, (low, high) of columns), zeros.
    precision: as in `lax.conv_general_dilated`; a CPU's products are whole anyway.
  """
  return _CONVOLUTION(x_BHWC, kernel_HWC, strides=strides, pads=pads, precision=precision)


def _input_gradient(
  gradient_BHWC: jax.Array,
  kernel_HWC: jax.Array,
  image_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
):
  """∂⟨g, depthwise_conv(x, kernel)⟩/∂x: (B, H', W', C) with (h, w, C) → (B, H, W, C), (H, W) = `image_size`."""
  options = {"image_size": image_size, "strides": strides, "pads": pads, "precision": precision}
  return _INPUT_GRADIENT(gradient_BHWC, kernel_HWC, **options)


def _weight_gradient(
  x_BHWC: jax.Array,
  gradient_BHWC: jax.Array,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
):
  """∂⟨g, depthwise_conv(x, kernel)⟩/∂kernel: (B, H, W, C) and (B, H', W', C) → (h, w, C)."""
  options = {"kernel_size": kernel_size, "strides": strides, "pads": pads, "precision": precision}
  return _WEIGHT_GRADIENT(x_BHWC, gradient_BHWC, **options)


depthwise_conv = jax.custom_vjp(_depthwise_conv, nondiff_argnums=(2, 3, 4))
input_gradient = jax.custom_vjp(_input_gradient, nondiff_argnums=(2, 3, 4, 5))
weight_gradient = jax.custom_vjp(_weight_gradient, nondiff_argnums=(2, 3, 4, 5))


def _depthwise_conv_forward(x, kernel, strides, pads, precision):
  return depthwise_conv(x, kernel, strides, pads, precision), (x, kernel)


def _depthwise_conv_backward(strides, pads, precision, saved, g):
  x, kernel = saved
  gradient_x = input_gradient(g, kernel, x.shape[1:3], strides, pads, precision)
  return gradient_x, weight_gradient(x, g, kernel.shape[:2], strides, pads, precision)


def _input_gradient_forward(g, kernel, image_size, strides, pads, precision):
  return input_gradient(g, kernel, image_size, strides, pads, precision), (g, kernel)


def _input_gradient_backward(image_size, strides, pads, precision, saved, x):
  del image_size
  g, kernel = saved
  gradient_g = depthwise_conv(x, kernel, strides, pads, precision)
  return gradient_g, weight_gradient(x, g, kernel.shape[:2], strides, pads, precision)


def _weight_gradient_forward(x, g, kernel_size, strides, pads, precision):
  return weight_gradient(x, g, kernel_size, strides, pads, precision), (x, g)


def _weight_gradient_backward(kernel_size, strides, pads, precision, saved, kernel):
  del kernel_size
  x, g = saved
  gradient_x = input_gradient(g, kernel, x.shape[1:3], strides, pads, precision)
  return gradient_x, depthwise_conv(x, kernel, strides, pads, precision)


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)
