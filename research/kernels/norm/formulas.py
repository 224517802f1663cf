"""Both passes in jnp, given how rows and columns are summed. Of each row the backward pass keeps two numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.norm import how as of
from research.kernels.norm.how import How
from research.kernels.sums import last


class Sums(NamedTuple):
  """How to sum: `rows` (…, D) → (…, 1), `columns` (…, D) → (D,)."""

  rows: Callable[[jax.Array], jax.Array]
  columns: Callable[[jax.Array], jax.Array]


def forward(*arrays: jax.Array, how: How, sums: Sums) -> tuple[jax.Array, ...]:
  """`Forward` → (y, x + residual where there is one, the mean if there is one, the inverse deviation)."""
  x, residual, scale_D, bias_D = of.forward(arrays, how)
  total = x if residual is None else x + residual
  wide, width = total.astype(jnp.float32), x.shape[-1]
  mean = (sums.rows(wide) / width,) if how.kind == "layer" else ()
  centred = wide - mean[0] if mean else wide
  inverse = lax.rsqrt(sums.rows(jnp.square(centred)) / width + how.epsilon)
  y = centred * inverse
  y = y if scale_D is None else y * last(scale_D, y)
  y = y if bias_D is None else y + last(bias_D, y)
  statistics = [each[..., 0] for each in (*mean, inverse)]
  return (y.astype(how.dtype), *(() if residual is None else (total,)), *statistics)


def backward(*arrays: jax.Array, how: How, sums: Sums) -> tuple[jax.Array, ...]:
  """`Backward` → gradients to x, and to scale and bias where there are any."""
  given = of.backward(arrays, how)
  width, to_y = given.x.shape[-1], given.to_y.astype(jnp.float32)
  normal = normalised(given)
  to_normal = to_y if given.scale_D is None else to_y * last(given.scale_D, to_y)
  to_x = to_normal - normal * (sums.rows(to_normal * normal) / width)
  if given.mean is not None:
    to_x = to_x - sums.rows(to_normal) / width
  to_x = (to_x * given.inverse[..., None]).astype(given.x.dtype)
  to_x = to_x if given.to_total is None else to_x + given.to_total
  to_scale = () if given.scale_D is None else (sums.columns(to_y * normal),)
  return (to_x, *to_scale, *((sums.columns(to_y),) if how.bias else ()))


def from_statistics(given: of.Backward, to_mean: jax.Array | None, to_inverse: jax.Array | None) -> jax.Array:
  """What gradients to the numbers of a row, (…), add to x's: of derivatives of derivatives alone. (…, D) float32."""
  width = given.x.shape[-1]
  to_x = jnp.zeros(given.x.shape, jnp.float32)
  if to_mean is not None:
    to_x = to_x + to_mean[..., None] / width
  if to_inverse is not None:
    to_x = to_x - (to_inverse * jnp.square(given.inverse))[..., None] * normalised(given) / width
  return to_x


def normalised(given: of.Backward) -> jax.Array:
  """The normalised values once more, before scale and bias, float32."""
  wide = given.x.astype(jnp.float32)
  return (wide if given.mean is None else wide - given.mean[..., None]) * given.inverse[..., None]
