"""A 2-D convolution and its two gradients, each differentiable any number of times, fast on a CPU.

All three are one trilinear form F(x, kernel, g) = ⟨g, convolution(x, kernel)⟩ with one argument left open:

| operation | open argument | its own derivatives |
| --- | --- | --- |
| `convolution(x, kernel)` | g | `input_gradient`, `weight_gradient` |
| `input_gradient(g, kernel)` | x | `convolution`, `weight_gradient` |
| `weight_gradient(x, g)` | kernel | `input_gradient`, `convolution` |

so each one's derivative is made of the other two, and a gradient penalty's second derivative runs as fast as a first.
XLA's CPU backend takes two to four times as long for a convolution's weight gradient as `cpu.py` does, for a transposed
convolution's over a hundred times (jax 0.10.2 and 0.12), and inside a loop more; elsewhere `xla.py` is used.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from research.kernels.choice import Form, Op, together
from research.kernels.conv import cpu, native, xla
from research.kernels.depthwise_conv import depthwise_conv

DIMENSIONS = xla.DIMENSIONS

Pads = tuple[tuple[int, int], tuple[int, int]]

_NATIVE = {"platforms": ("cpu",), "missing": native.missing, "limits": native.limits, "worth": native.worth}
_CONVOLUTION = Op(
  "conv",
  forms={"native": Form(native.convolution, **_NATIVE), "xla": Form(xla.convolution)},
  table={"cpu": ("native",)},
)
_INPUT_GRADIENT = Op(
  "conv.input_gradient",
  forms={
    "native": Form(native.input_gradient, **_NATIVE),
    "cpu": Form(cpu.input_gradient),
    "xla": Form(xla.input_gradient),
  },
  table={"cpu": ("native", "cpu")},
)
_WEIGHT_GRADIENT = Op(
  "conv.weight_gradient",
  forms={
    "native": Form(native.weight_gradient, **_NATIVE),
    "cpu": Form(cpu.weight_gradient),
    "xla": Form(xla.weight_gradient),
  },
  table={"cpu": ("native", "cpu")},
)


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

  With as many groups as channels, and as many outputs, it is `kernels.depthwise_conv` of (h, w, 1, C). Raises
  ValueError for dilations, other groups and other layouts, which it does not have. Differentiates in reverse mode
  only, as any `jax.custom_vjp` does.
  """
  given = lax.conv_dimension_numbers(x_BHWC.shape, kernel_HWIO.shape, dimension_numbers or DIMENSIONS)
  ours = lax.conv_dimension_numbers(x_BHWC.shape, kernel_HWIO.shape, DIMENSIONS)
  depthwise = 1 < feature_group_count == x_BHWC.shape[3] == kernel_HWIO.shape[3] and kernel_HWIO.shape[2] == 1
  if given != ours or {*lhs_dilation, *rhs_dilation} != {1} or not (depthwise or feature_group_count == 1):
    raise ValueError(
      "convolve: no dilations, no groups but one for each channel, and NHWC only; use lax.conv_general_dilated"
    )
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x_BHWC.shape[1:3], kernel_HWIO.shape[:2], strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  x_BHWC, kernel_HWIO = together(x_BHWC, kernel_HWIO)
  if depthwise:
    return depthwise_conv(x_BHWC, kernel_HWIO[:, :, 0], tuple(strides), pads, precision)
  return convolution(x_BHWC, kernel_HWIO, tuple(strides), pads, precision)


def _convolution(x_BHWC: jax.Array, kernel_HWCO: jax.Array, strides: tuple[int, int], pads: Pads, precision: Any):
  """(B, H, W, C) with (h, w, C, O) → (B, H', W', O), H' = (H + low + high − h) // stride + 1.

  Args:
    x_BHWC: images.
    kernel_HWCO: of the same dtype.
    strides: over rows and columns.
    pads: ((low, high) of rows, (low, high) of columns), zeros.
    precision: as in `lax.conv_general_dilated`.
  """
  options = {"strides": tuple(strides), "pads": tuple(pads), "precision": precision}
  return _CONVOLUTION(x_BHWC, kernel_HWCO, **options)


def _input_gradient(
  gradient_BHWO: jax.Array,
  kernel_HWCO: jax.Array,
  image_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
):
  """∂⟨g, convolution(x, kernel)⟩/∂x: (B, H', W', O) with (h, w, C, O) → (B, H, W, C), (H, W) = `image_size`."""

  options = {"image_size": image_size, "strides": strides, "pads": pads, "precision": precision}
  return _INPUT_GRADIENT(gradient_BHWO, kernel_HWCO, **options)


def _weight_gradient(
  x_BHWC: jax.Array,
  gradient_BHWO: jax.Array,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  pads: Pads,
  precision: Any,
):
  """∂⟨g, convolution(x, kernel)⟩/∂kernel: (B, H, W, C) and (B, H', W', O) → (h, w, C, O), summed in float32."""

  options = {"kernel_size": kernel_size, "strides": strides, "pads": pads, "precision": precision}
  return _WEIGHT_GRADIENT(x_BHWC, gradient_BHWO, **options)


convolution = jax.custom_vjp(_convolution, nondiff_argnums=(2, 3, 4))
input_gradient = jax.custom_vjp(_input_gradient, nondiff_argnums=(2, 3, 4, 5))
weight_gradient = jax.custom_vjp(_weight_gradient, nondiff_argnums=(2, 3, 4, 5))


def _convolution_forward(x, kernel, strides, pads, precision):
  return convolution(x, kernel, strides, pads, precision), (x, kernel)


def _convolution_backward(strides, pads, precision, saved, g):
  x, kernel = saved
  gradient_x = input_gradient(g, kernel, x.shape[1:3], strides, pads, precision)
  return gradient_x, weight_gradient(x, g, kernel.shape[:2], strides, pads, precision)


def _input_gradient_forward(g, kernel, image_size, strides, pads, precision):
  return input_gradient(g, kernel, image_size, strides, pads, precision), (g, kernel)


def _input_gradient_backward(image_size, strides, pads, precision, saved, x):
  del image_size
  g, kernel = saved
  gradient_g = convolution(x, kernel, strides, pads, precision)
  return gradient_g, weight_gradient(x, g, kernel.shape[:2], strides, pads, precision)


def _weight_gradient_forward(x, g, kernel_size, strides, pads, precision):
  return weight_gradient(x, g, kernel_size, strides, pads, precision), (x, g)


def _weight_gradient_backward(kernel_size, strides, pads, precision, saved, kernel):
  del kernel_size
  x, g = saved
  gradient_x = input_gradient(g, kernel, x.shape[1:3], strides, pads, precision)
  return gradient_x, convolution(x, kernel, strides, pads, precision)


convolution.defvjp(_convolution_forward, _convolution_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)
