"""The greatest value of each filter over a text (Kim 2014's max-over-time pooling), whose gradients know its place.

Autodiff makes the gradient of all the convolution's values first, one in L of which is not zero, and multiplies
matrices of zeros. With the place of the greatest value given, what is left is one trilinear form, and as in
`kernels.conv` each operation's derivative is made of the other two:

| operation | open argument | its own derivatives |
| --- | --- | --- |
| `value(x, kernel)` | g | `input_gradient`, `weight_gradient` |
| `input_gradient(g, kernel)` | x | `value`, `weight_gradient` |
| `weight_gradient(x, g)` | kernel | `input_gradient`, `value` |

Axes: B batch, L length, D width, K words of a window, F filters.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.choice import Form, Op, together
from research.kernels.max_over_time import cpu, xla

_INPUT_GRADIENT = Op(
  "max_over_time.input_gradient",
  forms={"cpu": Form(cpu.input_gradient), "xla": Form(xla.input_gradient)},
  table={"cpu": ("cpu",)},
)
_WEIGHT_GRADIENT = Op(
  "max_over_time.weight_gradient",
  forms={"cpu": Form(cpu.weight_gradient), "xla": Form(xla.weight_gradient)},
  table={"cpu": ("cpu",)},
)


def greatest(x_BLD: jax.Array, kernel_KDF: jax.Array, real_BL: jax.Array) -> jax.Array:
  """max over the real places l of Σ_k x[b, l + k − (K−1)//2] · kernel[k], zeros beyond both ends; (B, F).

  Of places that tie, the first has the gradient. Where no place is real: the dtype's lowest number, and no gradient.
  Differentiates in reverse mode only, as any `jax.custom_vjp` does.

  Args:
    x_BLD: float; what stands at places that are not real is read by windows of others, so zeros are usual.
    kernel_KDF: of the same dtype.
    real_BL: bool, which places count.
  """
  return _greatest(*together(x_BLD, kernel_KDF, real_BL))[0]


@jax.custom_vjp
def _greatest(x_BLD, kernel_KDF, real_BL):
  """→ (values_BF, places_BF int32)."""
  y_BLF = xla.convolution(x_BLD, kernel_KDF)
  y_BLF = jnp.where(real_BL[..., None], y_BLF, jnp.asarray(jnp.finfo(y_BLF.dtype).min, y_BLF.dtype))
  values_BF = y_BLF.max(axis=1)
  # Two reductions, for the one that argmax is runs on one number at a time.
  place_BLF = lax.broadcasted_iota(jnp.int32, y_BLF.shape, 1)
  is_greatest_BLF = y_BLF == values_BF[:, None]
  return values_BF, jnp.where(is_greatest_BLF, place_BLF, y_BLF.shape[1] - 1).min(axis=1)


def _greatest_forward(x, kernel, real_BL):
  values_BF, place_BF = _greatest(x, kernel, real_BL)
  return (values_BF, place_BF), (x, kernel, place_BF, real_BL.any(axis=1))


def _greatest_backward(saved, gradients):
  x, kernel, place_BF, has_text_B = saved
  g_BF = jnp.where(has_text_B[:, None], gradients[0], jnp.zeros((), x.dtype))
  return *_value_backward((x, kernel, place_BF), g_BF)[:2], None


_greatest.defvjp(_greatest_forward, _greatest_backward)


@jax.custom_vjp
def value(x_BLD: jax.Array, kernel_KDF: jax.Array, place_BF: jax.Array) -> jax.Array:
  """The convolution's values at one place for each text and filter; (B, F)."""
  y_BLF = xla.convolution(x_BLD, kernel_KDF)
  return jnp.where(xla.is_place(place_BF, y_BLF.shape[1]), y_BLF, jnp.zeros((), y_BLF.dtype)).sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def input_gradient(g_BF: jax.Array, kernel_KDF: jax.Array, place_BF: jax.Array, length: int) -> jax.Array:
  """∂⟨g, value(x, kernel)⟩/∂x: (B, F) with (K, D, F) → (B, L, D)."""
  return _INPUT_GRADIENT(g_BF, kernel_KDF, place_BF, length=length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def weight_gradient(x_BLD: jax.Array, g_BF: jax.Array, place_BF: jax.Array, window: int) -> jax.Array:
  """∂⟨g, value(x, kernel)⟩/∂kernel: (B, L, D) and (B, F) → (K, D, F)."""
  return _WEIGHT_GRADIENT(x_BLD, g_BF, place_BF, window=window)


def _value_forward(x, kernel, place_BF):
  return value(x, kernel, place_BF), (x, kernel, place_BF)


def _value_backward(saved, g):
  x, kernel, place_BF = saved
  gradient_x = input_gradient(g, kernel, place_BF, x.shape[1])
  return gradient_x, weight_gradient(x, g, place_BF, kernel.shape[0]), None


def _input_gradient_forward(g, kernel, place_BF, length):
  return input_gradient(g, kernel, place_BF, length), (g, kernel, place_BF)


def _input_gradient_backward(length, saved, x):
  del length
  g, kernel, place_BF = saved
  return value(x, kernel, place_BF), weight_gradient(x, g, place_BF, kernel.shape[0]), None


def _weight_gradient_forward(x, g, place_BF, window):
  return weight_gradient(x, g, place_BF, window), (x, g, place_BF)


def _weight_gradient_backward(window, saved, kernel):
  del window
  x, g, place_BF = saved
  return input_gradient(g, kernel, place_BF, x.shape[1]), value(x, kernel, place_BF), None


value.defvjp(_value_forward, _value_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)
