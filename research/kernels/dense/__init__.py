"""The product of a dense layer, (…, D) with (D, F), with a weight gradient that is fast on a CPU.

XLA's CPU backend writes the weight gradient of (B, L, D) as a product whose right side is a transposed copy, and
computes everything that leads to it once more inside that copy; a small GPT's update takes two thirds of the time
without. All three operations here are products of two of (x, kernel, gradient), so each one's derivatives are the
other two.
"""

from typing import Any

import jax

from research.kernels.choice import Form, Op, together
from research.kernels.dense import cpu, native, xla

_NATIVE = {"platforms": ("cpu",), "limits": native.limits, "missing": native.missing}
_PRODUCT, _INPUT_GRADIENT = (
  Op(
    f"dense.{name}",
    forms={"native": Form(in_cpp, worth=native.worth_product, **_NATIVE), "xla": Form(by_xla)},
    table={"cpu": ("native",)},
  )
  for name, in_cpp, by_xla in (
    ("product", native.product, xla.product),
    ("input_gradient", native.input_gradient, xla.input_gradient),
  )
)
_WEIGHT_GRADIENT = Op(
  "dense.weight_gradient",
  forms={
    "native": Form(native.weight_gradient, worth=native.worth, **_NATIVE),
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
  return product(*together(x, kernel_DF), precision)


def _product(x: jax.Array, kernel_DF: jax.Array, precision: Any):
  """(…, D) with (D, F) → (…, F)."""
  return _PRODUCT(x, kernel_DF, precision=precision)


def _input_gradient(gradient: jax.Array, kernel_DF: jax.Array, precision: Any):
  """∂⟨gradient, product(x, kernel)⟩/∂x: (…, F) and (D, F) → (…, D)."""
  return _INPUT_GRADIENT(gradient, kernel_DF, precision=precision)


def _weight_gradient(x: jax.Array, gradient: jax.Array, precision: Any):
  """∂⟨gradient, product(x, kernel)⟩/∂kernel: (…, D) and (…, F) → (D, F)."""
  return _WEIGHT_GRADIENT(x, gradient, precision=precision)


product = jax.custom_vjp(_product, nondiff_argnums=(2,))
input_gradient = jax.custom_vjp(_input_gradient, nondiff_argnums=(2,))
weight_gradient = jax.custom_vjp(_weight_gradient, nondiff_argnums=(2,))


def _product_forward(x, kernel, precision):
  return product(x, kernel, precision), (x, kernel)


def _product_backward(precision, saved, gradient):
  x, kernel = saved
  return input_gradient(gradient, kernel, precision), weight_gradient(x, gradient, precision)


def _input_gradient_forward(gradient, kernel, precision):
  return input_gradient(gradient, kernel, precision), (gradient, kernel)


def _input_gradient_backward(precision, saved, x):
  gradient, kernel = saved
  return product(x, kernel, precision), weight_gradient(x, gradient, precision)


def _weight_gradient_forward(x, gradient, precision):
  return weight_gradient(x, gradient, precision), (x, gradient)


def _weight_gradient_backward(precision, saved, kernel):
  x, gradient = saved
  return input_gradient(gradient, kernel, precision), product(x, kernel, precision)


product.defvjp(_product_forward, _product_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)
