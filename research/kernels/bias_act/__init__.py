"""A bias, an activation, a gain and a clamp in one (Karras et al. 2020, StyleGAN2), whose gradient needs its output.

Autodiff keeps a mask or the input for each of the four. Here the slope is read from the output, which the next layer
keeps anyway: with a clamp, less than half of what autodiff keeps in float32, and nothing beside the output. The bias'
gradient is summed in float32; XLA's CPU backend sums that of a plain bfloat16 sum in bfloat16, 20 times as slowly.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.kernels.choice import together


class Activation(NamedTuple):
  """An activation and its slope: of its output, or where that does not say it of its input."""

  value: Callable[[jax.Array], jax.Array]
  slope: Callable[[jax.Array], jax.Array]
  by_output: bool = True


def _swish_slope(x: jax.Array) -> jax.Array:
  s = jax.nn.sigmoid(x)
  return s + x * s * (1.0 - s)


ACTIVATIONS = {
  "linear": Activation(lambda x: x, jnp.ones_like),
  "relu": Activation(lambda x: jnp.maximum(x, 0.0), lambda y: (y > 0.0).astype(y.dtype)),
  "leaky_relu": Activation(lambda x: jnp.where(x > 0.0, x, 0.2 * x), lambda y: jnp.where(y > 0.0, 1.0, 0.2)),
  "tanh": Activation(jnp.tanh, lambda y: 1.0 - y * y),
  "sigmoid": Activation(jax.nn.sigmoid, lambda y: y * (1.0 - y)),
  "swish": Activation(lambda x: x * jax.nn.sigmoid(x), _swish_slope, by_output=False),
}


class How(NamedTuple):
  """As in `bias_act`; no clamp is infinity, and one is a number that the output can be, by which it is known again."""

  activation: str
  gain: float
  clamp: float


def bias_act(
  x: jax.Array, bias_C: jax.Array, activation: str = "linear", gain: float = 1.0, clamp: float | None = None
) -> jax.Array:
  """min(max(gain · activation(x + bias), −clamp), clamp): (…, C) → (…, C) in x's dtype, computed in float32.

  The slope is 0 where the clamp holds, and of two at a rectifier's bend the lower one. Differentiates in reverse mode,
  any number of times.

  Args:
    x: float32 or bfloat16.
    bias_C: the same dtype.
    activation: linear, relu, leaky_relu (slope 0.2), tanh, sigmoid or swish.
    gain: more than 0; √2 keeps a signal's variance through a rectifier.
    clamp: more than 0; None: none.

  Raises:
    ValueError: another activation, or a gain or clamp that is not more than 0.
  """
  if activation not in ACTIVATIONS:
    raise ValueError(f"bias_act: no activation {activation!r} ({', '.join(ACTIVATIONS)})")
  if gain <= 0.0 or (clamp is not None and clamp <= 0.0):
    raise ValueError(f"bias_act: gain {gain} and clamp {clamp} have to be more than 0")
  most = math.inf if clamp is None else float(np.asarray(clamp).astype(x.dtype))
  return _bias_act(*together(x, bias_C), How(activation, float(gain), most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bias_act(x, bias_C, how):
  y = how.gain * ACTIVATIONS[how.activation].value(_biased(x, bias_C))
  if how.clamp < math.inf:
    y = jnp.clip(y, -how.clamp, how.clamp)
  return y.astype(x.dtype)


def _forward(x, bias_C, how):
  y = _bias_act(x, bias_C, how)
  return y, (y if ACTIVATIONS[how.activation].by_output else x, bias_C)


def _backward(how, saved, gradient):
  kept, bias_C = saved
  activation = ACTIVATIONS[how.activation]
  if activation.by_output:
    y = kept.astype(jnp.float32)
    slope = how.gain * activation.slope(y * (1.0 / how.gain))
  else:
    x = _biased(kept, bias_C)
    y, slope = how.gain * activation.value(x), how.gain * activation.slope(x)
  if how.clamp < math.inf:  # not of the product: choosing between numbers, XLA's CPU backend does several at once
    slope = jnp.where(jnp.abs(y) < how.clamp, slope, 0.0)
  to_x = gradient.astype(jnp.float32) * slope
  to_bias_C = to_x.sum(axis=tuple(range(to_x.ndim - 1)))
  return to_x.astype(gradient.dtype), to_bias_C.astype(bias_C.dtype)


_bias_act.defvjp(_forward, _backward)


def _biased(x: jax.Array, bias_C: jax.Array) -> jax.Array:
  return x.astype(jnp.float32) + bias_C.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
