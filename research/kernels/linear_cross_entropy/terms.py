"""What some tokens' logits say: their scores, and the gradient of the weighted total. Both forms are made of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Terms(NamedTuple):
  """As in `linear_cross_entropy`."""

  ignore: int
  z_loss: float
  softcap: float
  smoothing: float


class Scores(NamedTuple):
  """Of each token, with any leading axes: see `Result`."""

  loss_N: jax.Array
  log_normalizer_N: jax.Array
  guess_N: jax.Array


def product(a: jax.Array, b: jax.Array, contracted: tuple[int, int], batched: bool = False) -> jax.Array:
  """The product over an axis of each, and with `batched` for each entry of the first axis; summed in float32."""
  batch = ((0,), (0,)) if batched else ((), ())
  dimensions = (((contracted[0],), (contracted[1],)), batch)
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def logits_of(x: jax.Array, kernel_DV: jax.Array, bias: tuple[jax.Array, ...]) -> jax.Array:
  """(…, D) → (…, V) float32, before the soft cap."""
  logits = product(x, kernel_DV, (x.ndim - 1, 0))
  return logits + bias[0].reshape((1,) * (logits.ndim - 1) + (-1,)) if bias else logits


def score(logits: jax.Array, labels: jax.Array, terms: Terms) -> tuple[Scores, jax.Array]:
  """(…, V), (…) → (scores, logits after the soft cap)."""
  if terms.softcap:
    logits = terms.softcap * jnp.tanh(logits / terms.softcap)
  greatest = logits.max(axis=-1, keepdims=True)
  log_normalizer = jnp.log(jnp.exp(logits - greatest).sum(axis=-1)) + greatest[..., 0]
  # Comparing with an iota: take_along_axis is a gather, and argmax a reduction that runs on one number at a time.
  place = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  picked = jnp.where(place == labels[..., None], logits, 0.0).sum(axis=-1)
  if terms.smoothing:
    picked = (1.0 - terms.smoothing) * picked + terms.smoothing * logits.mean(axis=-1)
  loss = jnp.where(labels == terms.ignore, 0.0, log_normalizer - picked)
  guess = jnp.where(logits == greatest, place, logits.shape[-1] - 1).min(axis=-1)
  return Scores(loss, log_normalizer, guess), logits


def gradient(
  logits: jax.Array, log_normalizer: jax.Array, labels: jax.Array, weights: jax.Array, terms: Terms
) -> jax.Array:
  """∂total/∂(logits before the soft cap) from those after it: (…, V), (…), (…), (…) → (…, V) float32."""
  size = logits.shape[-1]
  place = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  slope = jnp.exp(logits - log_normalizer[..., None]) * (1.0 + 2.0 * terms.z_loss * log_normalizer)[..., None]
  slope = slope - jnp.where(place == labels[..., None], 1.0 - terms.smoothing, 0.0) - terms.smoothing / size
  if terms.softcap:
    slope = slope * (1.0 - jnp.square(logits / terms.softcap))
  return slope * weights[..., None]
