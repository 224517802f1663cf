"""Dropout (Srivastava et al. 2014) whose random bytes are drawn once and kept as a bit for each value.

A byte decides about a value, so a random word serves four, and the rate is rounded to 1/256. What a word decided is
half a byte, and that is all that both directions read: an eighth of the words and of autodiff's mask together. Drawing
again in the backward pass keeps nothing, and takes up to half as long again on a CPU (jax 0.12).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.choice import Form, Op
from research.kernels.dropout import cpu, xla

_DRAW = Op(
  "dropout", forms={"cpu": Form(cpu.draw, limits=cpu.limits), "xla": Form(xla.draw)}, table={"cpu": ("cpu",)}
)


def dropout(x: jax.Array, key: jax.Array, rate: float, *, form: str | None = None) -> jax.Array:
  """x with values zeroed with probability `rate` and the rest scaled to keep the mean: (B, …) → (B, …) in x's dtype.

  The bytes are those of `jax.random.bits`, row by row, so that a batch sharded by rows draws its own rows' and a key
  gives the same mask in every form. The scale is that of the rounded rate, so the mean is kept exactly. A value that is
  not finite is NaN where it is dropped. The gradient is the same mask's; differentiates in reverse mode, any number of
  times.

  Args:
    x: float.
    key: as `jax.random` takes it.
    rate: in [0, 1), rounded to a multiple of 1/256, at most 255/256.
    form: "cpu" or "xla", instead of the choice.

  Raises:
    ValueError: a rate outside [0, 1).
  """
  if not 0.0 <= rate < 1.0:
    raise ValueError(f"dropout: a rate of {rate} is outside [0, 1)")
  dropped = min(round(rate * 256), 255)
  if dropped == 0:
    return x
  words = math.ceil(math.prod(x.shape[1:]) / 4)
  options = {"rows": x.shape[0], "words": words, "dropped": dropped, "generator": jax.random.key_impl(key)}
  return _masked(x, _DRAW(jax.random.key_data(key), **options, form=form), dropped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _masked(x: jax.Array, kept_BW: jax.Array, dropped: int) -> jax.Array:
  """Value i of a row stays where bit i % 4 of the row's byte i // 4 is set."""
  bit_114 = lax.broadcasted_iota(jnp.uint8, (1, 1, 4), 2)
  kept_BW4 = (kept_BW[..., None] >> bit_114) & jnp.uint8(1)
  kept = kept_BW4.reshape(x.shape[0], -1)[:, : math.prod(x.shape[1:])].reshape(x.shape)
  # A choice of numbers and then a product: XLA's CPU backend does several of those at once, and not of the reverse.
  return x * jnp.where(kept > 0, jnp.asarray(256 / (256 - dropped), x.dtype), jnp.zeros((), x.dtype))


_masked.defvjp(
  lambda x, kept_BW, dropped: (_masked(x, kept_BW, dropped), kept_BW),
  lambda dropped, kept_BW, gradient: (_masked(gradient, kept_BW, dropped), None),
)
