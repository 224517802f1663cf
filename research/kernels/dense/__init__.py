"""The product of a dense layer, (…, D) with (D, F), with a weight gradient that is fast on a CPU.

XLA's CPU backend writes the weight gradient of (B, L, D) as a product whose right side is a transposed copy, and
computes everything that leads to it once more inside that copy; a small GPT's update takes two thirds of the time
without. Both operations here are products of two of (x, kernel, gradient), so each one's derivative is made of the
other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.choice import Form, Op
from research.kernels.dense import cpu, native, xla

_WEIGHT_GRADIENT = Op(
  "dense.weight_gradient",
  forms={
    "native": Form(native.weight_gradient, ("cpu",), native.limits, native.worth, missing=native.missing),
    "cpu": Form(cpu.weight_gradient),
    "xla": Form(xla.weight_gradient),
  },
  table={"cpu": ("native", "cpu")},
)


def dot_general(x: jax.Array, kernel_DF: jax.Array, dimension_numbers: Any, precision: Any = None, **more: Any):
  """`lax.dot_general` of (…, D) with (D, F), to give to `nn.Dense(dot_general=dot_general)`.

  Raises ValueError for any other product. Differentiates in reverse mode only, as any `jax.custom_vjp` does.
  """
  if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())) or kernel_DF.ndim != 2:
    raise ValueError("dense: (…, D) with (D, F) only; use lax.dot_general")
  if set(more) - {"preferred_element_type"} or more.get("preferred_element_type") not in (None, x.dtype):
    raise ValueError(f"dense: no {', '.join(more)}; use lax.dot_general")
  return product(x, kernel_DF, precision)


def _product(x: jax.Array, kernel_DF: jax.Array, precision: Any):
  """(…, D) with (D, F) → (…, F)."""
  return lax.dot_general(x, kernel_DF, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


def _weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any):
  """∂⟨gradient, product(x, kernel)⟩/∂kernel: (…, D) and (…, F) → (D, F)."""
  return _WEIGHT_GRADIENT(x, gradient, precision=precision)


product = jax.custom_vjp(_product, nondiff_argnums=(2,))
weight_gradient = jax.custom_vjp(_weight_gradient, nondiff_argnums=(2,))


def _product_forward(x, kernel, precision):
  return product(x, kernel, precision), (x, kernel)


def _product_backward(precision, saved, gradient):
  x, kernel = saved
  return product(gradient, jnp.swapaxes(kernel, 0, 1), precision), weight_gradient(x, gradient, precision)


def _weight_gradient_forward(x, gradient, precision):
  return weight_gradient(x, gradient, precision), (x, gradient)


def _weight_gradient_backward(precision, saved, kernel):
  x, gradient = saved
  return product(gradient, jnp.swapaxes(kernel, 0, 1), precision), product(x, kernel, precision)


product.defvjp(_product_forward, _product_backward)
weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)
