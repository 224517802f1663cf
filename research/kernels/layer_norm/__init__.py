"""Layer normalisation (Ba et al. 2016) in float32 with its gradient written out, which differentiates again.

XLA's CPU backend takes longer for means over a width of 128 than for a product with a matrix, and computes the
normalised values once more for the gradient. Here they are kept, and the means are `kernels.sums`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.sums import column_sum, last, row_sum


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
  """(x − mean) / √(variance + epsilon) · scale + bias over the last axis, the variance around the mean.

  Args:
    x: (…, D) float32.
    scale_D: float32.
    bias_D: float32.
    epsilon: added to the variance.
  """
  return _forward(x, scale_D, bias_D, epsilon)[0]


def _forward(x, scale_D, bias_D, epsilon):
  centred = x - _mean(x)
  inverse = lax.rsqrt(_mean(jnp.square(centred)) + epsilon)
  normal = centred * inverse
  return normal * last(scale_D, x) + last(bias_D, x), (normal, inverse, scale_D)


def _backward(epsilon, saved, gradient):
  del epsilon
  normal, inverse, scale_D = saved
  g = gradient * last(scale_D, gradient)
  gradient_x = inverse * (g - _mean(g) - normal * _mean(g * normal))
  return gradient_x, column_sum(gradient * normal), column_sum(gradient)


layer_norm.defvjp(_forward, _backward)


def _mean(x: jax.Array) -> jax.Array:
  return row_sum(x) / x.shape[-1]
